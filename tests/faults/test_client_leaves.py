"""Row 12: the client leaves: before the first chunk, at the third, while it waits for a plain answer."""

import asyncio
import json
import re
import socket
import struct
import time
from typing import Any

import psutil
import pytest

from tests.faults.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, Wire, asking, body_of, request_head, wired
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case, eventually
from tests.fleet.control import Fleet
from tests.fleet.record import Exchange
from tests.held_up import HELD_UP

WITHIN = 1.0 + HELD_UP
STREAMS = [CHAT, COMPLETIONS]
FORMS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"stream": True}),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"stream": True}),
    (EMBEDDINGS, {}),
]
WAYS = ["fin", "rst", "half"]


async def send(wire: Wire, client: Client, path: str, body: dict[str, Any]) -> str:
    """Sends the request and gives its id."""
    identity = client.identity()
    data = json.dumps(body).encode()
    headers = {
        "authorization": f"Bearer {client.key}",
        "x-request-id": identity,
        "content-type": "application/json",
        "content-length": str(len(data)),
    }
    await wire.send(request_head(path, headers) + data)
    return identity


def leave(wire: Wire, way: str = "fin") -> float:
    """Closes the connection, in good manners, by a reset, or its own half of it, and gives the time."""
    if way == "half":
        wire.writer.write_eof()
        return time.monotonic()
    if way == "rst":
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return wire.leave()


async def closed(server: Fleet, left: float, count: int = 1) -> list[Exchange]:
    """The server's requests, all of which must have lost their client in time."""

    def all_ended(log: list[Exchange]) -> bool:
        return len(log) == count and all(seen.ended for seen in log)

    await server.until(all_ended)
    log = server.log()
    for seen in log:
        assert seen.ended == "client_closed"
        assert seen.ended_at is not None
        assert seen.ended_at - left < WITHIN, f"the server was let go after {seen.ended_at - left:.2f} s"
    return log


async def place_is_free(client: Client, model: str, left: float) -> None:
    """The key, which may run one request at a time, may run the next one."""
    while (reply := await client.ask(EMBEDDINGS, body_of(EMBEDDINGS, model, text=client.key))).status != 200:
        assert reply.code == "concurrency_limit_exceeded"
        assert time.monotonic() - left < WITHIN
        client.case.refused |= {reply.identity}
    assert reply.status == 200


def check_record(case: Case, identity: str, tokens: int = 0) -> None:
    [record] = case.citadel.records(identity)
    assert record["outcome"] == "client_disconnected"
    assert record["completion_tokens"] == tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("path", "options"), FORMS)
async def test_before_anything_has_come(case: Case, pair: Pair, path: str, options: dict[str, Any], way: str) -> None:
    pair.first.behave("hang", path=path)
    pair.second.behave("hang", path=path)
    async with asking(case, case.new_key(concurrent=1)) as client, wired(case.citadel.url) as wire:
        text = f"{case.prefix} x"
        identity = await send(wire, client, path, body_of(path, pair.model, text=text, **options))
        await pair.first.until(lambda log: [seen for seen in log if seen.read_at])
        left = leave(wire, way)
        [seen] = await closed(pair.first, left)
        assert seen.headers["x-request-id"] == identity
        assert not pair.second.calls(), "a request that nobody waits for was tried again"
        pair.first.behave()
        await place_is_free(client, pair.model, left)
    check_record(case, identity)


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("behaviour", ["hang headers", "hang chunk:0", "comments_only count=0"])
async def test_when_the_server_has_begun_without_content(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str
) -> None:
    pair.first.behave(behaviour)
    async with wired(case.citadel.url) as wire:
        identity = await send(wire, client, path, body_of(path, pair.model, stream=True))
        await pair.first.until(lambda log: [seen for seen in log if seen.first_byte_at])
        left = leave(wire)
        await closed(pair.first, left)
    assert not pair.second.calls()
    check_record(case, identity)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", STREAMS)
async def test_at_the_third_chunk(case: Case, pair: Pair, path: str, way: str) -> None:
    pair.first.behave("hang chunk:3", path=path)
    async with asking(case, case.new_key(concurrent=1)) as client, wired(case.citadel.url) as wire:
        identity = await send(wire, client, path, body_of(path, pair.model, stream=True))
        status, _ = await wire.head()
        assert status == 200
        content = re.compile(rb'"content":"[^"]' if path == CHAT else rb'"text":"[^"]')
        received = b""
        while len(content.findall(received)) < 3:
            received += await asyncio.wait_for(wire.reader.read(65536), 5)
        left = leave(wire, way)
        await closed(pair.first, left)
        await place_is_free(client, pair.model, left)
    check_record(case, identity, tokens=3)


@pytest.mark.parametrize(
    "size", [100_000, *(pytest.param(size, marks=pytest.mark.faults) for size in (1_000_000, 5_000_000))]
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_the_request_was_long(
    case: Case, pair: Pair, client: Client, size: int, stream: bool, coding: str
) -> None:
    """A body that is read with the brakes on must not leave the connection unwatched."""
    pair.first.behave("hang")
    data = json.dumps(body_of(CHAT, pair.model, text="x" * size, stream=stream)).encode()
    identity = client.identity()
    headers = {"authorization": f"Bearer {client.key}", "x-request-id": identity}
    async with wired(case.citadel.url) as wire:
        if coding == "length":
            await wire.send(request_head(CHAT, {**headers, "content-length": str(len(data))}) + data)
        else:
            head = request_head(CHAT, {**headers, "transfer-encoding": "chunked"})
            await wire.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        await pair.first.until(lambda log: [seen for seen in log if seen.read_at])
        left = leave(wire)
        await closed(pair.first, left)
    check_record(case, identity)


async def test_while_the_server_is_being_reached(case: Case, servers: Servers, client: Client, model: str) -> None:
    """A connection that is never accepted is given up with the request."""
    server = servers(model)
    server.behave("silent_host")
    async with wired(case.citadel.url) as wire:
        identity = await send(wire, client, CHAT, body_of(CHAT, model))
        await asyncio.to_thread(eventually, lambda: not _connections_to(case, server))
        leave(wire)
        await asyncio.to_thread(eventually, lambda: _connections_to(case, server), within=WITHIN)
    check_record(case, identity)


def _connections_to(case: Case, server: Fleet) -> list[str]:
    links = psutil.Process(case.citadel.worker).net_connections("inet")
    return [link.status for link in links if link.raddr and link.raddr.port == server.port]


async def test_a_reader_that_has_stopped_and_leaves(case: Case, servers: Servers, client: Client, model: str) -> None:
    """The stream waits for room in the client's socket when the client goes."""
    server = servers(model, tokens=200_000)
    server.behave("together 100")
    async with wired(case.citadel.url) as wire:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport as well
        identity = await send(wire, client, CHAT, body_of(CHAT, model, stream=True))
        await server.until(lambda log: [seen for seen in log if seen.chunks_sent > 1000])
        await asyncio.to_thread(_until_nothing_moves, server)
        left = leave(wire)
        [seen] = await closed(server, left)
    [record] = case.citadel.records(identity)
    assert record["outcome"] == "client_disconnected"
    assert 0 < record["completion_tokens"] <= seen.chunks_sent  # type: ignore[operator]


def _until_nothing_moves(server: Fleet) -> None:
    sent = -1
    while sent != (sent := server.log()[0].bytes_sent):
        time.sleep(0.2)


async def test_before_its_request_is_whole(case: Case, pair: Pair, client: Client) -> None:
    """Nobody is asked, nothing is logged, nothing is kept."""
    async with wired(case.citadel.url) as wire:
        headers = {
            "authorization": f"Bearer {client.key}",
            "x-request-id": client.identity(recorded=False),
            "content-length": "1000",
        }
        await wire.send(request_head(CHAT, headers) + b'{"model":')
        await asyncio.sleep(0.05)
        leave(wire)
    assert not pair.first.calls()


async def test_a_hundred_leave_at_once(case: Case, pair: Pair, client: Client) -> None:
    """At any moment of the way: some have nothing yet, some are in the stream, some wait for the whole."""
    kinds = [("slow_chunks 300", {"stream": True}), ("hang", {})]

    async def come_and_go(number: int) -> str:
        behaviour, options = kinds[number % 2]
        text = f"{case.prefix} {number} [[behave:{behaviour}]]"
        async with wired(case.citadel.url) as wire:
            identity = await send(wire, client, CHAT, body_of(CHAT, pair.model, text=text, **options))
            await asyncio.sleep(number * 0.008)
            leave(wire)
            return identity

    identities = await asyncio.gather(*map(come_and_go, range(100)))
    await asyncio.to_thread(eventually, lambda: _running(pair), within=WITHIN)
    case.recorded -= {identity for identity in identities if not case.citadel.records(identity, within=1)}
    case.refused |= set(identities)  # the first left before their request had been read
    assert len(case.recorded) > 80
    ended = {record["outcome"] for identity in case.recorded for record in case.citadel.records(identity)}
    assert ended == {"client_disconnected"}


def _running(pair: Pair) -> int:
    return pair.first.state().in_flight + pair.second.state().in_flight


async def test_at_any_moment_while_it_is_admitted(case: Case, pair: Pair, client: Client) -> None:
    """The place that Redis has just given to a client that has just left is given back, as all places are."""
    pair.first.behave("hang")
    pair.second.behave("hang")

    async def come_and_go(number: int) -> str:
        async with wired(case.citadel.url) as wire:
            identity = await send(wire, client, CHAT, body_of(CHAT, pair.model, stream=number % 2 == 0))
            for _ in range(number % 50):
                await asyncio.sleep(0)  # as many turns of the loop
            leave(wire)
            return identity

    for start in range(0, 1000, 50):
        case.refused |= set(await asyncio.gather(*map(come_and_go, range(start, start + 50))))
    case.recorded -= case.refused  # some left before their request had been read
    await asyncio.to_thread(eventually, lambda: _running(pair), within=WITHIN)
