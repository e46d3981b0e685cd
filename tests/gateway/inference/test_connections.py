"""Connections to servers: how they are used again, and whatever HTTP allows on them."""

import asyncio
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest
import uvloop

from apps.gateway.inference.http.connections import Connections
from apps.gateway.inference.http.failures import map_failure
from apps.gateway.inference.http.idle import Bounds
from apps.orchestration.health.probes import failure_of
from citadel import addresses
from citadel.addresses import Addresses
from tests.faults.invariants import eventually
from tests.gateway.client import CHAT, Client, chat
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import Instance

FLEET = Addresses(("loopback", "private"))
TLS = Path(__file__).parent / "tls"
BODY = json.dumps({"id": "x", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]})
ANSWER = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}".encode()
CLOSES = ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


@dataclass(frozen=True)
class Seen:
    """A request as it came, and on which connection."""

    connection: int
    head: bytes
    body: bytes


Answer = Callable[[Seen], list[bytes] | Awaitable[list[bytes]]]


@dataclass
class Scripted:
    """A server that answers each request with packets, a moment apart; without any it hangs up."""

    answer: Answer
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.seen.append(Seen(number, head, await reader.readexactly(int(length or 0))))
                answer = self.answer(self.seen[-1])
                packets = answer if isinstance(answer, list) else await answer
                for packet in packets:
                    writer.write(packet)
                    await asyncio.sleep(0.02)
                if not packets or b"connection: close" in packets[0]:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Plain(Scripted):
    """One that takes a TLS handshake for a bad request, as proxies do."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(CLOSES)
        writer.close()


@asynccontextmanager
async def listening(server: Scripted, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port that `server` listens on."""
    listener = await asyncio.start_server(server.serve, host, 0, ssl=tls)
    async with listener:
        yield int(listener.sockets[0].getsockname()[1])


@asynccontextmanager
async def registered(citadel: Instance, model: str, answer: Answer) -> AsyncIterator[Scripted]:
    """A scripted server in the fleet."""
    server = Scripted(answer)
    async with listening(server) as port:
        with citadel.registered(f"http://127.0.0.1:{port}", [model]):
            yield server


async def test_what_a_server_gets(citadel: Instance, client: Client, model: str) -> None:
    async with registered(citadel, model, lambda _: [ANSWER]) as server:
        body = json.dumps(chat(model, "naïve 字", x_unknown=[1.50])).encode()
        reply = await client.post(body, cookie="a=b", accept="text/plain")
        assert (reply.status, reply.body) == (200, BODY.encode())
    [request] = server.seen
    line, *lines = request.head.decode().rstrip().split("\r\n")
    headers = dict(header.split(": ", 1) for header in lines)
    assert line == f"POST {CHAT} HTTP/1.1"
    assert request.body == body
    assert headers.pop("host").startswith("127.0.0.1:")
    assert headers.pop("x-request-id") == reply.identity
    assert len(headers.pop("x-citadel-via")) == 16
    assert headers == {"content-type": "application/json", "content-length": str(len(body))}


async def test_a_connection_serves_again_until_the_server_ends_it(
    citadel: Instance, client: Client, model: str
) -> None:
    def answer(seen: Seen) -> list[bytes]:
        return [CLOSES if b"last" in seen.body else ANSWER]

    async with registered(citadel, model, answer) as server:
        for text in ("first", "second", "last", "fourth"):
            assert (await client.post(chat(model, text))).status == 200
    assert [request.connection for request in server.seen] == [0, 0, 0, 1]


async def test_a_kept_connection_that_hangs_up_is_no_failure(citadel: Instance, client: Client, model: str) -> None:
    def answer(seen: Seen) -> list[bytes]:
        return [] if seen.connection == 0 and b"second" in seen.body else [ANSWER]

    async with registered(citadel, model, answer) as server:
        for text in ("first", "second"):
            reply = await client.post(chat(model, text))
            assert (reply.status, reply.headers["x-citadel-attempts"]) == (200, "1")
    assert [request.connection for request in server.seen] == [0, 0, 1]


async def test_a_new_connection_that_hangs_up_is_asked_once(citadel: Instance, client: Client, model: str) -> None:
    async with registered(citadel, model, lambda _: []) as server:
        reply = await client.post(chat(model))
        assert (reply.status, reply.json()["error"]["type"]) == (502, "upstream_error")
    assert len(server.seen) == 1


async def test_a_kept_connection_that_hangs_up_late_is_a_failure(citadel: Instance, client: Client, model: str) -> None:
    """The server had the request for a while: it isn't sent to it a second time as if nothing had been."""

    async def answer(seen: Seen) -> list[bytes]:
        if b"second" in seen.body:
            await asyncio.sleep(1.5)
            return []
        return [ANSWER]

    async with registered(citadel, model, answer) as server:
        statuses = [(await client.post(chat(model, text))).status for text in ("first", "second")]
        assert statuses == [200, 502]
    assert len(server.seen) == 2


@pytest.mark.parametrize(("length", "said"), [(100_000, True), (5_000_000, False)])
async def test_a_long_refusal_is_the_requests_own_fault(
    citadel: Instance, client: Client, model: str, length: int, said: bool
) -> None:
    """As of a server that repeats the whole request in its error; its words are told as far as they were read."""
    body = json.dumps({"error": {"message": "too hot", "input": "x" * length}}).encode()
    refusal = b"HTTP/1.1 422 Unprocessable Content\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with registered(citadel, model, lambda _: [refusal]) as server:
        reply = await client.post(chat(model))
        assert (reply.status, reply.json()["error"]["type"]) == (400, "invalid_request_error")
        assert (reply.json()["error"]["message"] == "too hot") is said
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "packets",
    [
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + ANSWER],
        [ANSWER[:20], ANSWER[20:90], ANSWER[90:]],
        [bytes([byte]) for byte in ANSWER[:40]] + [ANSWER[40:]],
        [CLOSES.replace(b"content-length: %d\r\n" % len(BODY), b"")],
    ],
    ids=["informational", "in_pieces", "in_bytes", "until_the_end"],
)
async def test_an_answer_may_come_in_any_legal_way(
    citadel: Instance, client: Client, model: str, packets: list[bytes]
) -> None:
    async with registered(citadel, model, lambda _: packets):
        for text in ("first", "second"):
            reply = await client.post(chat(model, text))
            assert (reply.status, reply.body) == (200, BODY.encode())


@pytest.mark.parametrize("text", ["x" * 60_000, "x" * 3_000_000], ids=["small", "large"])
async def test_a_body_arrives_whole_whatever_its_size(citadel: Instance, client: Client, model: str, text: str) -> None:
    async with registered(citadel, model, lambda _: [ANSWER]) as server:
        body = json.dumps(chat(model, text)).encode()
        assert (await client.post(body)).status == 200
    assert server.seen[0].body == body


@pytest.mark.parametrize(
    "packet", [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"SSH-2.0-x\r\n\r\n"]
)
async def test_what_is_no_answer_is_a_failure(citadel: Instance, client: Client, model: str, packet: bytes) -> None:
    async with registered(citadel, model, lambda _: [packet]):
        reply = await client.post(chat(model))
        assert (reply.status, reply.json()["error"]["type"]) == (502, "upstream_error")


async def test_a_server_may_have_an_ipv6_address(citadel: Instance, client: Client, model: str) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = Scripted(lambda _: [ANSWER])
    async with listening(server, "::1") as port:
        with citadel.registered(f"http://[::1]:{port}", [model]):
            assert (await client.post(chat(model))).status == 200
    assert f"host: [::1]:{port}\r\n".encode() in server.seen[0].head


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_server_behind_tls(elsewhere: Elsewhere, model: str) -> None:
    """Its certificate is checked: by the name that it was made for it is trusted, by another it is not."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    server = Scripted(lambda _: [ANSWER])
    async with listening(server, "0.0.0.0", tls) as port, elsewhere.asking() as client:
        for host, status in (("localhost", 200), ("127.0.0.2", 503)):
            name = f"{model}-{status}"
            elsewhere.command("server", "add", name, f"https://{host}:{port}", "--model", name)
            elsewhere.citadel.settle()
            assert (await client.post(chat(name))).status == status
            elsewhere.command("server", "remove", name)
    assert [request.head.split(b" ")[0] for request in server.seen] == [b"POST"]


async def test_a_large_body_that_nobody_reads_goes_with_its_client(
    citadel: Instance, client: Client, model: str
) -> None:
    """The server's machine takes what its buffers hold; the rest waits in Citadel, and no longer than the client."""
    taken, over = asyncio.Event(), asyncio.Event()

    async def take_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        taken.set()
        await over.wait()
        writer.close()

    listener = await asyncio.start_server(take_nothing, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    worker = psutil.Process(citadel.worker)

    def connections_to_it() -> list[object]:
        return [link for link in worker.net_connections() if link.raddr and link.raddr.port == port]

    async with listener:
        with citadel.registered(f"http://127.0.0.1:{port}", [model]):
            asked = asyncio.create_task(client.post(chat(model, "x" * 9_000_000)))
            await taken.wait()
            await asyncio.sleep(0.3)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await asyncio.to_thread(eventually, connections_to_it)
        over.set()


async def test_a_body_that_stalls_is_given_up() -> None:
    """From the moment on that the reader says for how long it waits."""
    server = Scripted(lambda _: [ANSWER[:-5]])
    connections = Connections(FLEET, connect=1, keep_alive=1, kept=Bounds(50, 30))
    async with listening(server) as port:
        await connections.start()
        target = connections.target(f"http://127.0.0.1:{port}/v1/chat/completions", [])
        response = await connections.post(target, b"", b"{}", 1)
        response.limit_silence(0.2)
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            while not response.content.at_eof():
                await response.content.readany()
        assert 0.1 < time.monotonic() - begun < 1 + HELD_UP
        response.close()
        await connections.stop()


@pytest.mark.parametrize("turns", range(1, 7))
def test_a_worker_that_was_busy_blames_no_server(turns: int) -> None:
    """Whose connection it had in time, and did not see before its time was over: the workers' loop looks at timers
    before it reads.
    """

    async def work() -> None:
        connections = Connections(FLEET, connect=0.2, keep_alive=1, kept=Bounds(50, 30))
        async with listening(Scripted(lambda _: [ANSWER])) as port:
            await connections.start()
            target = connections.target(f"http://127.0.0.1:{port}/v1/chat/completions", [])
            asked = asyncio.create_task(connections.post(target, b"", b"{}", 5))
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(0.5)  # noqa: ASYNC251  # as a worker is held up that has much to read
            response = await asked
            assert response.status == 200
            response.close()
            await connections.stop()

    uvloop.run(work())


@pytest.mark.parametrize("turn", [0.06, 0.15, 0.25])
def test_a_worker_whose_turns_are_all_long_blames_no_server(turn: float) -> None:
    """A connection takes several turns of the loop, and its time may be over in the midst of them, at the right moment;
    so may that of an answer that has come and is not read yet.
    """
    port: queue.Queue[int] = queue.Queue()
    over = threading.Event()

    async def serve() -> None:
        async with listening(Scripted(lambda _: [ANSWER])) as its_own:
            port.put(its_own)
            await asyncio.to_thread(over.wait)

    async def work() -> None:
        connections = Connections(FLEET, connect=0.2, keep_alive=1, kept=Bounds(50, 30))
        await connections.start()
        target = connections.target(f"http://127.0.0.1:{port.get()}/v1/chat/completions", [])
        asked = asyncio.create_task(connections.post(target, b"", b"{}", 0.2))
        while not asked.done():
            await asyncio.sleep(0)
            time.sleep(turn)  # noqa: ASYNC251  # as a worker is held up by thousands of requests at once
        response = await asked
        assert response.status == 200
        response.close()
        await connections.stop()

    server = threading.Thread(target=uvloop.run, args=(serve(),))
    server.start()
    try:
        uvloop.run(work())
    finally:
        over.set()
        server.join()


async def test_a_request_that_ends_its_server_was_sent_whatever_the_next_connection_says() -> None:
    """It came over a kept connection; after it nobody listens any more. That it was refused would say that nothing was
    sent, and let it end the next server too.
    """
    listener: asyncio.Server

    def answer(seen: Seen) -> list[bytes]:
        if seen.body == b"{}":
            return [ANSWER]
        listener.close()
        return []

    listener = await asyncio.start_server(Scripted(answer).serve, "127.0.0.1", 0)
    connections = Connections(FLEET, connect=1, keep_alive=5, kept=Bounds(50, 30))
    await connections.start()
    port = listener.sockets[0].getsockname()[1]
    target = connections.target(f"http://127.0.0.1:{port}/v1/chat/completions", [])
    response = await connections.post(target, b"", b"{}", 1)
    await response.content.read()
    response.release()
    with pytest.raises(aiohttp.ClientError) as raised:
        await connections.post(target, b"", b"[]", 1)
    failure = map_failure(raised.value)
    assert (failure.reason, failure.refused, failure.damaging) == ("disconnected", False, True)
    with pytest.raises(aiohttp.ClientError) as raised:
        await connections.post(target, b"", b"{}", 1)
    assert map_failure(raised.value).refused, "of this one nothing was sent"
    await connections.stop()


async def test_what_came_before_the_end_can_still_be_read() -> None:
    """The library's reader gives an error as soon as the connection is gone, whatever it holds."""
    head, body = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\n", b"so far and no further"
    server = Scripted(lambda _: [head, body])
    connections = Connections(FLEET, connect=1, keep_alive=1, kept=Bounds(50, 30))
    async with listening(server) as port:
        await connections.start()
        target = connections.target(f"http://127.0.0.1:{port}/v1/chat/completions", [])
        response = await connections.post(target, b"", b"{}", 1)
        await asyncio.sleep(0.2)
        with pytest.raises(aiohttp.ClientError):
            await response.content.readany()
        assert response.unread() == body
        assert response.unread() == b""
        response.close()
        await connections.stop()


async def test_a_name_that_has_come_to_lead_elsewhere_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    real, leads_to = socket.getaddrinfo, {"server.test": "127.0.0.1"}

    def look_up(host: str, *args: object, **options: object) -> object:
        return real(leads_to.get(host, host), *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    async with listening(Scripted(lambda _: [CLOSES])) as port:
        for address in ("127.0.0.1", "169.254.169.254", "203.0.113.7"):
            leads_to["server.test"] = address
            connections = Connections(FLEET, connect=1, keep_alive=1, kept=Bounds(50, 30))
            await connections.start()
            target = connections.target(f"http://server.test:{port}/v1/chat/completions", [])
            if address == "127.0.0.1":
                response = await connections.post(target, b"", b"{}", 1)
                assert response.status == 200
                response.close()
            else:
                with pytest.raises(aiohttp.ClientConnectorError, match="may not be called") as raised:
                    await connections.post(target, b"", b"{}", 1)
                assert map_failure(raised.value).reason == "address_refused"
            await connections.stop()


@pytest.mark.parametrize(
    ("host", "tls", "reason"),
    [
        ("http://nowhere.invalid", True, "no_address"),
        ("https://localhost", True, "bad_certificate"),
        ("https://127.0.0.1", True, "bad_certificate"),
        ("https://localhost", False, "tls_failed"),
    ],
)
async def test_why_there_is_no_connection_is_told_alike_by_requests_and_probes(
    host: str, tls: bool, reason: str
) -> None:
    """None of it is a refusal, which is the server's own word."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    connections = Connections(FLEET, connect=5, keep_alive=1, kept=Bounds(50, 30))
    await connections.start()
    server = Scripted(lambda _: [CLOSES]) if tls else Plain(lambda _: [CLOSES])
    async with listening(server, tls=context if tls else None) as port:
        with pytest.raises(aiohttp.ClientError) as raised:
            await connections.post(connections.target(f"{host}:{port}/v1/chat/completions", []), b"", b"{}", 1)
    await connections.stop()
    failure, outcome = map_failure(raised.value), failure_of(raised.value)
    assert outcome and (failure.reason, outcome.failure) == (reason, reason)
    assert (failure.refused, failure.evidence) == (True, "unreachable"), "nothing was sent"


@pytest.mark.parametrize("host", ["169.254.169.254", "8.8.8.8", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0"])
async def test_no_connection_is_made_to_an_address_outside_of_the_fleets_networks(host: str) -> None:
    connections = Connections(FLEET, connect=1, keep_alive=1, kept=Bounds(50, 30))
    await connections.start()
    with pytest.raises(aiohttp.ClientConnectorError, match="may not be called") as raised:
        await connections.post(connections.target(f"http://{host}:80/v1/chat/completions", []), b"", b"{}", 1)
    assert map_failure(raised.value).reason == "address_refused"
    await connections.stop()
