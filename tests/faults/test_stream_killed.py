"""Row 2: a backend is killed in the middle of a stream, after k chunks that the client has."""

import asyncio
import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.faults.client import CHAT, COMPLETIONS, Client, Reply, body_of, request_head, unchunked, wired
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case, eventually
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP

CLOSED_WITHIN = 1.0 + HELD_UP


def events_of(server: Fleet, path: str, body: str) -> list[bytes]:
    """What the server sends, in peace, for exactly that body: its events with their blank lines."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", path, body.encode(), {"content-type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return [event + b"\n\n" for event in answer.split(b"\n\n") if event]


def check_cut_short(case: Case, reply: Reply, server: Fleet, chunks: int) -> None:
    """The client has the chunks byte for byte, one error, no end; the record bills them."""
    assert reply.status == 200
    assert reply.chunks, reply.body
    [seen] = server.log()
    server.behave()
    sent = events_of(server, seen.path, seen.body)
    before, _, after = reply.body.partition(b'data: {"error"')
    content = [event for event in sent if not _only_says_who_speaks(event)]
    expected = b"".join(event for event in sent if event not in content) + b"".join(content[:chunks])
    assert before == expected
    assert after.count(b"\n\n") == 1, "something follows the error"
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"
    assert "[DONE]" not in reply.events
    assert reply.finish_reasons == []
    [record] = case.citadel.records(reply.identity)
    assert record["outcome"] == "stream_interrupted"
    assert record["completion_tokens"] == chunks
    assert len(record["attempts"]) == 1  # type: ignore[arg-type]


def _only_says_who_speaks(event: bytes) -> bool:
    return b'"role"' in event


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("death", "chunks"),
    [
        ("die chunk:1", 1),
        ("die chunk:3 rst", 3),
        ("die chunk:2.5", 2),
        ("die chunk:2.5 rst", 2),
        ("slow_chunks 20; bad_frame at_event=4", 3),
        ("framing close; die chunk:3", 3),
        ("together 4; die chunk:3 rst", 3),
        ("split 7; die chunk:3", 3),
    ],
)
async def test_the_client_gets_what_came_and_one_error(
    case: Case, pair: Pair, client: Client, path: str, death: str, chunks: int
) -> None:
    if "bad_frame" in death and path == COMPLETIONS:
        death = "slow_chunks 20; bad_frame at_event=3"  # no event that says who speaks comes first
    pair.first.behave(death)
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    check_cut_short(case, reply, pair.first, chunks)
    assert not pair.second.calls(), "a second server was asked after the client had content"


async def test_the_process_is_killed(case: Case, servers: Servers, client: Client, model: str) -> None:
    server = servers(model)
    server.behave("die chunk:3 exit")
    reply = await client.ask(CHAT, body_of(CHAT, model, stream=True))
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"
    assert len([chunk for chunk in reply.chunks if chunk["choices"][0]["delta"].get("content")]) == 3
    [record] = case.citadel.records(reply.identity)
    assert record["completion_tokens"] == 3


async def test_the_socket_is_closed_within_a_second(case: Case, pair: Pair, client: Client) -> None:
    pair.first.behave("die chunk:3 rst")
    async with wired(case.citadel.url) as wire:
        body = b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"x"}]}' % pair.model.encode()
        identity = client.identity()
        headers = {
            "authorization": f"Bearer {client.key}",
            "x-request-id": identity,
            "content-length": str(len(body)),
        }
        await wire.send(request_head(CHAT, headers) + body)
        status, _ = await wire.head()
        answer = await wire.rest()
        closed = time.monotonic()
    case.failed.add(identity)
    assert status == 200
    [seen] = pair.first.log()
    assert seen.ended_at is not None
    assert closed - seen.ended_at < CLOSED_WITHIN
    events = unchunked(answer).split(b"\n\n")
    assert b"stream_interrupted" in events[-2]


async def test_a_reader_that_is_slower_than_the_death_gets_all_that_came(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    """What waits in Citadel when the server dies is not thrown away with its connection."""
    chunks = 25_000
    server = servers(model, tokens=chunks + 1)
    server.behave(f"together 100; die chunk:{chunks}")
    body = json.dumps(body_of(CHAT, model, stream=True)).encode()
    identity = client.identity()
    headers = {"authorization": f"Bearer {client.key}", "x-request-id": identity, "content-length": str(len(body))}

    def read_slowly() -> bytes:
        parts = urlsplit(case.citadel.url)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.connect((parts.hostname, parts.port))
            connection.sendall(request_head(CHAT, headers) + body)
            pieces = []
            while piece := connection.recv(65536):
                pieces.append(piece)
                time.sleep(0.005)
            return b"".join(pieces)

    answer = unchunked((await asyncio.to_thread(read_slowly)).partition(b"\r\n\r\n")[2])
    case.failed.add(identity)
    assert b"stream_interrupted" in answer
    assert answer.count(b'"delta":{"content"') == chunks


async def test_nothing_of_it_is_cached(case: Case, pair: Pair, client: Client) -> None:
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    pair.first.behave("die chunk:3", next=1)
    first = await client.ask(CHAT, body)
    assert first.stream_error is not None
    second = await client.ask(CHAT, body)
    assert second.headers["x-citadel-cache"] == "miss"
    assert second.finish_reasons == ["stop"]
    third = await client.ask(CHAT, body)
    assert third.headers["x-citadel-cache"] == "hit"
    assert third.text == second.text


async def test_the_server_is_held_to_account(case: Case, servers: Servers, client: Client, model: str) -> None:
    """A server that breaks every stream off goes out of the rotation as one that refuses them would."""
    breaks, holds = servers(model, weight=1000), servers(model)
    breaks.behave("die chunk:1")
    for number in range(5):
        await client.ask(CHAT, body_of(CHAT, model, text=str(number), stream=True))
    reply = await client.ask(CHAT, body_of(CHAT, model))
    assert reply.headers["x-citadel-server"] == holds.server_id


async def test_many_streams_break_at_once(case: Case, servers: Servers, client: Client, model: str) -> None:
    server = servers(model, tokens=50)
    server.behave("slow_chunks 50")
    asked = [asyncio.create_task(client.ask(CHAT, body_of(CHAT, model, text=str(n), stream=True))) for n in range(100)]
    await server.until(lambda log: len([seen for seen in log if seen.chunks_sent >= 3]) == 100)
    server.kill()
    replies = await asyncio.gather(*asked)
    for reply in replies:
        assert reply.stream_error is not None
        assert reply.stream_error["code"] == "stream_interrupted"
        assert reply.events[-1].startswith('{"error"')
        assert reply.finish_reasons == []

    def tokens_not_billed() -> list[object]:
        wrong = []
        for reply in replies:
            [record] = case.citadel.records(reply.identity)
            content = [chunk for chunk in reply.chunks if chunk["choices"][0]["delta"].get("content")]
            if record["completion_tokens"] != len(content):
                wrong.append((record["completion_tokens"], len(content)))
        return wrong

    eventually(tokens_not_billed)
