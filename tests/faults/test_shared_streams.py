"""Equal streams in flight: all read one call's chunks as they come, whoever leaves, is slow, or comes later."""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.faults.client import CHAT, COMPLETIONS, Client, Wire, asking, body_of, request_head, unchunked, wired
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case
from tests.fleet.record import Exchange
from tests.held_up import HELD_UP

WITHIN = 1.0 + HELD_UP
CONTENT = re.compile(rb'"(?:content|text)":"[^"]')
TOKENS = 8


@contextlib.asynccontextmanager
async def reading(case: Case, client: Client, path: str, body: dict[str, Any]) -> AsyncIterator[tuple[Wire, str]]:
    """A client that reads by itself, and its request's id."""
    identity = client.identity()
    data = json.dumps(body).encode()
    headers = {
        "authorization": f"Bearer {client.key}",
        "x-request-id": identity,
        "content-length": str(len(data)),
        "connection": "close",
    }
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(path, headers) + data)
        yield wire, identity


async def read_chunks(wire: Wire, count: int) -> bytes:
    """What comes until so many chunks with content are there."""
    received = b""
    while len(CONTENT.findall(received)) < count:
        piece = await asyncio.wait_for(wire.reader.read(65536), 5)
        assert piece, "the stream has ended"
        received += piece
    return received


def one_of(case: Case, identity: str) -> dict[str, Any]:
    [record] = case.citadel.records(identity)
    return record


def calls(pair: Pair) -> list[Exchange]:
    """What both servers were asked for clients; Citadel may ask them meanwhile what they have."""
    return [seen for seen in pair.first.log() + pair.second.log() if seen.method == "POST"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_follower_gets_the_chunks_as_they_come(case: Case, pair: Pair, client: Client, path: str) -> None:
    pair.first.behave("slow_chunks 200")
    body = body_of(path, pair.model, text=case.prefix, temperature=0, stream=True)
    leader = asyncio.create_task(client.ask(path, body))
    await pair.first.until(lambda log: [seen for seen in log if seen.chunks_sent >= 3])
    async with client.begin(path, body) as answer:
        assert answer.headers["x-citadel-cache"] == "coalesced"
        assert answer.headers["x-citadel-server"] == pair.first.server_id
        early = await asyncio.wait_for(answer.content.readany(), 1.0 + HELD_UP)
        assert len(CONTENT.findall(early)) >= 3, "what had come before"
        assert not leader.done()
        pieces = [early]
        async for piece in answer.content.iter_any():
            pieces.append(piece)
    assert len(pieces) > 3, "not piece by piece"
    reply = await leader
    assert b"".join(pieces) == reply.body
    assert len(calls(pair)) == 1
    assert (await client.ask(path, body)).headers["x-citadel-cache"] == "hit"


async def test_the_leaders_client_leaves_in_mid_stream(case: Case, pair: Pair, client: Client) -> None:
    """The call goes on for who is left, byte for byte; each record counts its part of the tokens."""
    pair.first.behave("slow_chunks 200")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    async with reading(case, client, CHAT, body) as (leader, identity):
        await read_chunks(leader, 2)
        followers = [asyncio.create_task(client.ask(CHAT, body)) for _ in range(3)]
        await read_chunks(leader, 3)
        leader.leave()
    replies = await asyncio.gather(*followers)
    assert not any(reply.stream_error or reply.broken for reply in replies)
    assert len({reply.body for reply in replies}) == 1
    [seen] = calls(pair)
    assert seen.ended == "completed"
    repeated = await client.ask(CHAT, body)
    assert repeated.headers["x-citadel-cache"] == "hit"
    assert repeated.body == replies[0].body
    left = one_of(case, identity)
    assert left["outcome"] == "client_disconnected"
    assert left["completion_tokens"] >= 3
    records = [one_of(case, reply.identity) for reply in replies]
    assert {record["outcome"] for record in records} == {"ok"}
    assert left["completion_tokens"] + sum(record["completion_tokens"] for record in records) == TOKENS
    assert sorted(len(record["attempts"]) for record in records) == [0, 0, 1]


async def test_a_call_that_another_has_taken_over_counts_for_its_key(case: Case, pair: Pair) -> None:
    """Else a key could have as many running as it likes, by leaving all but the last reader."""
    key = case.new_key(concurrent=1)
    pair.first.behave("slow_chunks 200")
    pair.second.behave("slow_chunks 200")
    body, other = (body_of(CHAT, pair.model, text=text, temperature=0, stream=True) for text in (case.prefix, "other"))
    async with asking(case, key) as client, reading(case, client, CHAT, body) as (leader, _):
        await read_chunks(leader, 1)
        async with reading(case, client, CHAT, body) as (follower, _):
            await read_chunks(follower, 1)
            leader.leave()
            await read_chunks(follower, 2)
            refused = await client.ask(CHAT, other)
            assert (refused.status, refused.code) == (429, "concurrency_limit_exceeded")
            assert b"[DONE]" in await follower.rest()
        assert (await client.ask(CHAT, other)).status == 200


async def test_a_call_ends_when_its_last_reader_leaves(case: Case, pair: Pair, client: Client) -> None:
    pair.first.behave("slow_chunks 200")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    async with reading(case, client, CHAT, body) as (leader, first):
        await read_chunks(leader, 1)
        async with reading(case, client, CHAT, body) as (follower, second):
            await read_chunks(follower, 1)
            leader.leave()
            await read_chunks(follower, 2)
            assert not pair.first.calls()[0].ended
            left = follower.leave()
            [seen] = await pair.first.until(lambda log: [seen for seen in log if seen.ended])
    assert seen.ended == "client_closed"
    assert seen.ended_at is not None
    assert seen.ended_at - left < WITHIN
    assert {one_of(case, identity)["outcome"] for identity in (first, second)} == {"client_disconnected"}
    pair.first.behave()
    assert (await client.ask(CHAT, body)).headers["x-citadel-cache"] == "miss"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_stream_that_breaks_off_does_so_for_each(case: Case, pair: Pair, client: Client, how: str) -> None:
    """Row 2 for all who read along; who waits for the whole has another server asked."""
    pair.first.behave(f"slow_chunks 200; die chunk:6 {how}", next=1)
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    leader = asyncio.create_task(client.ask(CHAT, body))
    await pair.first.until(lambda log: [seen for seen in log if seen.chunks_sent >= 2])
    followers = [asyncio.create_task(client.ask(CHAT, body)) for _ in range(3)]
    plain = [asyncio.create_task(client.ask(CHAT, {**body, "stream": False})) for _ in range(3)]
    replies = await asyncio.gather(leader, *followers)
    assert len({reply.body for reply in replies}) == 1
    for reply in replies:
        assert len(CONTENT.findall(reply.body)) == 6
        assert reply.stream_error is not None
        assert reply.stream_error["code"] == "stream_interrupted"
        assert reply.body.count(b'data: {"error"') == 1
        assert reply.finish_reasons == []
        assert "[DONE]" not in reply.events
        assert one_of(case, reply.identity)["outcome"] == "stream_interrupted"
    assert one_of(case, replies[0].identity)["completion_tokens"] == 6
    wholes = await asyncio.gather(*plain)
    assert {whole.status for whole in wholes} == {200}
    assert len(calls(pair)) == 2


async def test_a_leader_that_stops_reading_holds_nobody(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    """14 MB, which fit into no socket's buffers: he is cut off when he is too far behind, and never misses a byte."""
    tokens = 60_000
    server = servers(model, tokens=tokens)
    server.behave("together 100")
    case.check_memory = False  # such a stream for the first time
    body = body_of(CHAT, model, text=case.prefix, temperature=0, stream=True)
    sent = json.dumps(body).encode()
    identity = client.identity()
    headers = {"authorization": f"Bearer {client.key}", "x-request-id": identity, "content-length": str(len(sent))}
    parts = urlsplit(case.citadel.url)
    with socket.socket() as leader:
        leader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        leader.connect((parts.hostname, parts.port))
        leader.sendall(request_head(CHAT, headers) + sent)
        await server.until(lambda log: [seen for seen in log if seen.chunks_sent])
        reply = await asyncio.wait_for(client.ask(CHAT, body), 10)
        assert len(CONTENT.findall(reply.body)) == tokens
        assert reply.events[-1] == "[DONE]"

        def read() -> bytes:
            pieces = []
            while piece := leader.recv(1 << 20):
                pieces.append(piece)
            return b"".join(pieces)

        came = unchunked((await asyncio.to_thread(read)).partition(b"\r\n\r\n")[2])
    case.failed.add(identity)
    chunks, _, error = came.partition(b'data: {"error"')
    assert reply.body.startswith(chunks)
    assert b"stream_interrupted" in error
    assert b"[DONE]" not in error


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_plain_answer_of_a_stream_under_way(case: Case, pair: Pair, client: Client, leaves: bool) -> None:
    pair.first.behave("slow_chunks 200")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    async with reading(case, client, CHAT, body) as (leader, _):
        received = await read_chunks(leader, 2)
        plain = asyncio.create_task(client.ask(CHAT, {**body, "stream": False}))
        await asyncio.sleep(0.2)
        if leaves:
            leader.leave()
        else:
            received += await leader.rest()
        whole = await plain
    assert whole.status == 200
    assert whole.headers["x-citadel-cache"] == "coalesced"
    assert whole.json()["choices"][0]["finish_reason"] == "stop"
    assert whole.text
    assert len(calls(pair)) == 1
    assert leaves or b"[DONE]" in received


@pytest.mark.parametrize("style", ["last", "missing", "in_finish"])
async def test_each_is_told_the_usage_that_it_asked_for(case: Case, pair: Pair, client: Client, style: str) -> None:
    """Whatever the leader asked for."""
    pair.first.behave(f"slow_chunks 100; usage {style}")
    for leader_wants in (True, False):
        body = body_of(CHAT, pair.model, text=f"{case.prefix} {leader_wants}", temperature=0, stream=True)
        wanting = {**body, "stream_options": {"include_usage": True}}
        leader = asyncio.create_task(client.ask(CHAT, wanting if leader_wants else body))
        count = 1 if leader_wants else 2
        await pair.first.until(lambda log, count=count: len([seen for seen in log if seen.chunks_sent]) == count)
        told, untold = await asyncio.gather(client.ask(CHAT, wanting), client.ask(CHAT, body))
        first = await leader
        assert told.headers["x-citadel-cache"] == untold.headers["x-citadel-cache"] == "coalesced"
        for reply, wants in ((first, leader_wants), (told, True), (untold, False)):
            usages = [chunk for chunk in reply.chunks if chunk.get("usage")]
            assert len(usages) == (1 if wants or style == "in_finish" else 0)
            assert len(CONTENT.findall(reply.body)) == TOKENS
            assert reply.events[-1] == "[DONE]"
            assert reply.finish_reasons == ["stop"]


async def test_a_follower_who_may_not_is_told_so_alone(case: Case, pair: Pair) -> None:
    """The limit of a key of the same team."""
    team = f"team-{case.prefix}"
    free, spent = (case.keep(case.citadel.key(team, requests_per_minute=number)) for number in (0, 1))
    pair.first.behave("slow_chunks 100")
    body = body_of(CHAT, pair.model, text=case.prefix, temperature=0, stream=True)
    async with asking(case, free) as unlimited, asking(case, spent) as limited:
        assert (await limited.ask(CHAT, body_of(CHAT, pair.model, text="the one"))).status == 200
        leader = asyncio.create_task(unlimited.ask(CHAT, body))
        await pair.first.until(lambda log: [seen for seen in log if seen.chunks_sent >= 2])
        assert (await limited.ask(CHAT, body)).status == 429
        assert (await leader).events[-1] == "[DONE]"
