"""HTTP itself, below what an ordinary client would send: offers to upgrade, endless heads, what is no HTTP."""

import asyncio
import json
import select
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import uvicorn

from citadel.protocol import Protocol
from tests.faults.client import CHAT, Wire, request_head, wired
from tests.fleet.control import Fleet, calls_of
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
H2C = {
    "connection": "Upgrade, HTTP2-Settings",
    "upgrade": "h2c",
    "http2-settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
}
LIVE = b"GET /health/live HTTP/1.1\r\nhost: citadel\r\n\r\n"
LARGEST, LONGEST_ADDRESS = 160 * 1024, 64 * 1024


@pytest.fixture
async def wire(citadel: Instance) -> AsyncIterator[Wire]:
    async with wired(citadel.url) as wire:
        yield wire


@pytest.fixture
def asks(citadel: Instance, fleet: Start, model: str) -> dict[str, str]:
    """The headers of who may ask for a chat."""
    fleet(model)
    return {"authorization": f"Bearer {citadel.key()}"}


def with_length(headers: dict[str, str], body: bytes) -> bytes:
    return request_head(CHAT, {**headers, "content-length": str(len(body))}) + body


def in_chunks(headers: dict[str, str], body: bytes) -> bytes:
    chunks = b"".join(b"5\r\n%b\r\n" % body[at : at + 5] for at in range(0, len(body) // 5 * 5, 5))
    rest = body[len(body) // 5 * 5 :]
    last = b"%x\r\n%b\r\n" % (len(rest), rest) if rest else b""
    return request_head(CHAT, {**headers, "transfer-encoding": "chunked"}) + chunks + last + b"0\r\n\r\n"


async def told(wire: Wire, status: int, code: str) -> dict[str, str]:
    """The headers of an error, which is the last that is said on the connection."""
    seen, headers, body = await wire.answer()
    error = json.loads(body)["error"]
    assert (seen, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert await wire.rest() == b""
    return headers


@pytest.mark.parametrize("offer", [H2C, {"connection": "upgrade", "upgrade": "websocket"}], ids=["h2c", "websocket"])
@pytest.mark.parametrize("framed", [with_length, in_chunks])
@pytest.mark.parametrize("cut", [None, 40, -1, -30])
async def test_an_offer_to_upgrade_is_ignored(
    citadel: Instance,
    wire: Wire,
    asks: dict[str, str],
    model: str,
    offer: dict[str, str],
    framed: Callable[[dict[str, str], bytes], bytes],
    cut: int | None,
) -> None:
    log = citadel.home / "logs" / "web-1.log"
    known = len(log.read_bytes())
    request = framed({**asks, **offer}, json.dumps(chat(model)).encode())
    request += request + LIVE
    await wire.send(request[:cut])
    if cut:
        await asyncio.sleep(0.05)
        await wire.send(request[cut:])
    for _ in range(2):
        status, _, body = await wire.answer()
        assert (status, json.loads(body)["object"]) == (200, "chat.completion")
    assert (await wire.answer())[0] == 200
    assert b"WebSocket" not in log.read_bytes()[known:]


async def test_many_offers_at_once_are_read_in_time(wire: Wire) -> None:
    offer = LIVE.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    began = time.monotonic()
    await wire.send(offer * 2000)
    for _ in range(2000):
        assert (await wire.answer())[0] == 200
    assert time.monotonic() - began < 5 + HELD_UP


def long_value(size: int) -> bytes:
    return b"GET /health/live HTTP/1.1\r\nhost: citadel\r\nx-long: " + b"v" * size + b"\r\n\r\n"


def long_name(size: int) -> bytes:
    return b"GET /health/live HTTP/1.1\r\nhost: citadel\r\n" + b"n" * size + b": v\r\n\r\n"


def long_address(size: int) -> bytes:
    return b"GET /health/live?" + b"q" * size + b" HTTP/1.1\r\nhost: citadel\r\n\r\n"


def many_lines(size: int) -> bytes:
    return b"GET /health/live HTTP/1.1\r\nhost: citadel\r\n" + b"a: b\r\n" * (size // 6) + b"\r\n"


FORMS = [long_value, long_name, long_address, many_lines]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [LARGEST, 4 * LARGEST, 100 * LARGEST])
@pytest.mark.parametrize("pieces", [1, 10])
async def test_a_head_may_not_be_endless(wire: Wire, form: Callable[[int], bytes], size: int, pieces: int) -> None:
    await wire.send(LIVE)
    assert (await wire.answer())[0] == 200
    head = form(size)
    for at in range(pieces):
        await wire.send(head[len(head) * at // pieces : len(head) * (at + 1) // pieces])
        await asyncio.sleep(0.01)
    headers = await told(wire, 431, "headers_too_large")
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    ["/api/v1/keys", "/api/v1/teams", "/api/v1/budgets", "/api/v1/usage", "/orchestration/events", "/management/stats"],
)
async def test_a_query_of_too_many_fields_is_told_so(citadel: Instance, client: Client, path: str) -> None:
    """A thousand and one, in less than an address may be long."""
    reply = await client.get(f"{path}?{'a=1&' * 1001}", key=citadel.admin_key)
    assert (reply.status, reply.code) == (400, "invalid_value"), path


@pytest.mark.parametrize("size", [LONGEST_ADDRESS, LARGEST - 200])
async def test_an_address_may_be_no_longer_than_is_counted(wire: Wire, size: int) -> None:
    await wire.send(long_address(size))
    await told(wire, 431, "headers_too_large")


@pytest.mark.parametrize("form", FORMS)
async def test_a_long_head_is_read(wire: Wire, form: Callable[[int], bytes]) -> None:
    head = form((LONGEST_ADDRESS if form is long_address else LARGEST) - 200)
    for data in (head, head * 3):
        await wire.send(data)
        for _ in range(len(data) // len(head)):
            assert (await wire.answer())[0] == 200


async def test_an_endless_head_takes_neither_time_nor_memory(citadel: Instance, wire: Wire) -> None:
    worker = psutil.Process(citadel.worker)
    await wire.send(LIVE)
    await wire.answer()
    before, used = worker.memory_info().rss, sum(worker.cpu_times()[:2])
    async with wired(citadel.url) as endless:
        await endless.send(long_value(16 * 1024 * 1024))
        assert (await endless.head())[0] == 431
    assert worker.memory_info().rss - before < 10 * 1024 * 1024  # of the 16 that came
    assert sum(worker.cpu_times()[:2]) - used < 1.5


@pytest.mark.parametrize("lines", [b"x-long: " + b"v" * 4 * LARGEST, b"a: b\r\n" * LARGEST])
async def test_neither_may_the_lines_after_a_body(wire: Wire, asks: dict[str, str], model: str, lines: bytes) -> None:
    request = in_chunks(asks, json.dumps(chat(model)).encode()).removesuffix(b"\r\n")
    await wire.send(request)
    await asyncio.sleep(0.05)
    for at in range(0, len(lines), LARGEST):
        await wire.send(lines[at : at + LARGEST])
        await asyncio.sleep(0.01)
    await told(wire, 431, "headers_too_large")


async def test_a_body_of_many_small_chunks_is_no_head(wire: Wire, asks: dict[str, str], model: str) -> None:
    request = in_chunks(asks, json.dumps(chat(model, "x" * 200_000)).encode())
    for at in range(0, len(request), 50_000):
        await wire.send(request[at : at + 50_000])
        await asyncio.sleep(0.01)
    await wire.send(LIVE)
    assert [(await wire.answer())[0] for _ in range(2)] == [200, 200]


async def test_trailers_are_no_headers(wire: Wire, asks: dict[str, str], model: str) -> None:
    """A key, a request's id and a choice that come after the body are worth nothing."""
    key = asks["authorization"].encode()
    trailers = b"authorization: %b\r\nx-request-id: from-a-trailer\r\nx-citadel-cache: use\r\n" % key
    for headers, wanted in (({}, 401), (asks, 200)):
        request = in_chunks({**headers, "x-request-id": "from-the-head"}, json.dumps(chat(model)).encode())
        await wire.send(request.removesuffix(b"\r\n") + trailers + b"\r\n")
        status, told_back, _ = await wire.answer()
        assert (status, told_back["x-request-id"]) == (wanted, "from-the-head")
        assert told_back.get("x-citadel-cache") == ("bypass" if wanted == 200 else None)


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ({"content-encoding": "gzip"}, 415, "unsupported_content_encoding"),
        ({"transfer-encoding": "gzip, chunked"}, 501, "unsupported_transfer_encoding"),
    ],
)
async def test_a_body_that_is_packed_is_told_so(
    wire: Wire, asks: dict[str, str], model: str, header: dict[str, str], status: int, code: str
) -> None:
    framed = in_chunks if "transfer-encoding" in header else with_length
    request = framed({**asks, **header}, json.dumps(chat(model)).encode())
    await wire.send(request.replace(b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n"))
    await told(wire, status, code)


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: citadel\r\nx-request-id: my-own-request\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"transfer-encoding: chunked\r\n\r\nnumber\r\n",
        POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}   ",
        POST + b"content-length: -1\r\n\r\n",
        POST + b"no colon\r\n\r\n",
        POST.replace(b"/v1", b"v1") + b"\r\n",
        b"FETCH /v1/models HTTP/1.1\r\nhost: citadel\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nhost: citadel\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"garbage\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_told_so(wire: Wire, request_: bytes) -> None:
    await wire.send(request_)
    headers = await told(wire, 400, "invalid_http")
    own = request_.startswith(POST) and b"no colon" not in request_  # before which the name may still go on
    assert headers["x-request-id"] == "my-own-request" if own else headers["x-request-id"].startswith("req_")


async def test_an_answer_that_is_under_way_is_not_disturbed(
    wire: Wire, fleet: Start, citadel: Instance, model: str
) -> None:
    """What was asked for before the nonsense came is answered, and the connection closed."""
    fleet(model).behave("slow_chunks 20")
    headers = {"authorization": f"Bearer {citadel.key()}"}
    asked = with_length(headers, json.dumps(chat(model, stream=True)).encode())
    await wire.send(asked)
    await wire.head()
    await wire.send(b"garbage\r\n\r\n")
    await wire.send(b"more of it\r\n\r\n")
    stream = await wire.rest()
    assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert b"invalid_http" not in stream


async def test_those_asked_before_nonsense_are_answered(wire: Wire, asks: dict[str, str], model: str) -> None:
    asked = with_length(asks, json.dumps(chat(model)).encode())
    await wire.send(asked + LIVE + b"garbage\r\n\r\n")
    assert [(await wire.answer())[0] for _ in range(2)] == [200, 200]
    assert await wire.rest() == b""


@pytest.mark.parametrize("between", [b"", LIVE])
async def test_a_body_that_turns_to_nonsense_ends_the_connection_after_those_before_it(
    wire: Wire, asks: dict[str, str], model: str, between: bytes
) -> None:
    asked = with_length(asks, json.dumps(chat(model)).encode())
    await wire.send(asked + between + POST + b"transfer-encoding: chunked\r\n\r\nnumber\r\n")
    for _ in range(2 if between else 1):
        assert (await wire.answer())[0] == 200
    assert await wire.rest() == b""


async def test_a_body_that_is_refused_and_turns_to_nonsense(wire: Wire, asks: dict[str, str]) -> None:
    head = request_head(CHAT, {**asks, "transfer-encoding": "chunked"})
    piece = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
    await wire.send(head + piece * 11)
    status, _, body = await wire.answer()
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
    await wire.send(b"number\r\n")
    assert await wire.rest(1) == b""


async def test_who_turns_to_nonsense_in_a_body_is_answered_once(citadel: Instance, wire: Wire) -> None:
    """The request that had begun is given up, before its time for the body is over."""
    await wire.send(POST + b"transfer-encoding: chunked\r\n\r\n")
    await asyncio.sleep(0.05)
    await wire.send(b"5\r\n{    \r\nnumber\r\n")
    headers = await told(wire, 400, "invalid_http")
    assert headers["x-request-id"] == "my-own-request"


@pytest.mark.parametrize("begun", [b"GET /health/li", LIVE[:-2] + b"x-more: a", LIVE + b"GET /"])
async def test_a_head_that_never_ends_is_given_up(wire: Wire, begun: bytes) -> None:
    """Trickled, too: its time is over when it is. The limit of these tests is three seconds."""
    began = time.monotonic()
    await wire.send(begun)
    if begun.startswith(LIVE):
        assert (await wire.answer())[0] == 200
    for _ in range(4):
        await asyncio.sleep(0.5)
        await wire.send(b"y")
    await told(wire, 408, "request_timeout")
    assert 2.5 < time.monotonic() - began < 8 + HELD_UP


@asynccontextmanager
async def idle_for(seconds: int, answers: Any) -> AsyncIterator[Wire]:
    """A connection to an application that is ended when it is idle for so long."""
    config = uvicorn.Config(answers, http=Protocol, timeout_keep_alive=seconds, log_config=None)
    config.load()
    loop, state = asyncio.get_running_loop(), uvicorn.server.ServerState()
    server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, wired(f"http://{host}:{port}") as wire:
        yield wire


async def test_empty_lines_keep_no_connection() -> None:
    """It is idle all the same, and ends with the time for idle connections: here a second."""
    began = time.monotonic()
    async with idle_for(1, nothing) as wire:
        ended = asyncio.create_task(wire.rest())
        while not ended.done() and time.monotonic() < began + 5:
            await wire.send(b"\r\n")
            await asyncio.sleep(0.1)
        assert await ended == b""
    assert 0.9 < time.monotonic() - began < 5 + HELD_UP


@pytest.mark.parametrize(
    ("head", "piece"),
    [(b"content-length: 1000\r\n\r\n", b"x"), (b"transfer-encoding: chunked\r\n\r\nfff\r\n", b"x")],
    ids=["length", "chunks"],
)
async def test_nor_does_more_of_a_body_that_is_answered(head: bytes, piece: bytes) -> None:
    began = time.monotonic()
    async with idle_for(1, without_reading) as wire:
        await wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n" + head)
        assert (await wire.answer())[0] == 200
        ended = asyncio.create_task(wire.rest())
        while not ended.done() and time.monotonic() < began + 5:
            await wire.send(piece)
            await asyncio.sleep(0.1)
        assert await ended == b""
    assert 0.9 < time.monotonic() - began < 5 + HELD_UP


async def test_who_sends_the_rest_of_such_a_body_may_ask_again() -> None:
    async with idle_for(3, without_reading) as wire:
        for _ in range(3):
            await wire.send(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n")
            assert (await wire.answer())[0] == 200
            for piece in (b"a", b"b", b"cd"):
                await asyncio.sleep(0.6)
                await wire.send(piece)


async def without_reading(_scope: object, _receive: object, send: Any) -> None:
    """Answers before the body is there."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def nothing(_scope: object, _receive: object, _send: object) -> None:
    """An application that is never asked."""


async def test_who_takes_nothing_of_a_slow_stream_is_cut_off(citadel: Instance, fleet: Start, model: str) -> None:
    """Long before the system and the worker have no more room for it. The limit of these tests is four seconds."""
    server = fleet(model, tokens=20_000)
    server.behave("slow_chunks 10")
    parts, body = urlsplit(citadel.url), json.dumps(chat(model, stream=True)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((parts.hostname, parts.port))
        connection.setblocking(False)
        headers = {"authorization": f"Bearer {citadel.key()}", "content-length": str(len(body))}
        loop, poll = asyncio.get_running_loop(), select.poll()
        await loop.sock_sendall(connection, request_head(CHAT, headers) + body)
        assert await loop.sock_recv(connection, 12) == b"HTTP/1.1 200"
        began = time.monotonic()
        poll.register(connection, 0)
        while not poll.poll(0):
            assert time.monotonic() - began < 12 + HELD_UP
            await asyncio.sleep(0.2)
        assert time.monotonic() - began > 3.5
    await server.until(lambda log: all(call.ended for call in calls_of(log)))


async def test_empty_lines_end_no_connection(wire: Wire) -> None:
    await wire.send(LIVE + b"\r\n")
    assert (await wire.answer())[0] == 200
    await asyncio.sleep(2)
    await wire.send(LIVE)
    assert (await wire.answer())[0] == 200
