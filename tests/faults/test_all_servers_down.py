"""Row 4: all servers of a model are down."""

import asyncio
import itertools
import time

import pytest

from tests.faults.client import CHAT, EMBEDDINGS, Client, Reply, body_of
from tests.faults.conftest import Servers
from tests.faults.invariants import Case
from tests.held_up import HELD_UP

AT_ONCE = 0.1
BACK_WITHIN = 5.0 + HELD_UP
EJECTING = 5


def check_unavailable(reply: Reply) -> None:
    assert reply.status == 503, (reply.status, reply.body)
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.ended <= AT_ONCE


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_503_at_once_and_service_within_five_seconds_of_a_server(
    case: Case, servers: Servers, client: Client, model: str, stream: bool
) -> None:
    first, second = servers(model), servers(model)
    await client.ask(CHAT, body_of(CHAT, model))
    first.kill()
    second.kill()
    down = time.monotonic()
    while time.monotonic() - down < 3.5:
        check_unavailable(await client.ask(CHAT, body_of(CHAT, model, stream=stream)))
        await asyncio.sleep(0.05)
    second.restart()
    back = time.monotonic()
    while (reply := await client.ask(CHAT, body_of(CHAT, model, stream=stream))).status != 200:
        check_unavailable(reply)
        assert time.monotonic() - back < BACK_WITHIN
        await asyncio.sleep(0.05)
    assert reply.headers["x-citadel-server"] == second.server_id
    assert time.monotonic() - back < BACK_WITHIN


@pytest.mark.faults
async def test_service_is_back_soon_after_a_long_absence(
    case: Case, servers: Servers, client: Client, model: str
) -> None:
    """The backoff has long reached its end; its longest pause is shorter than the promise."""
    servers_down = [servers(model), servers(model), servers(model)]
    for server in servers_down:
        server.kill()
    down = time.monotonic()
    while time.monotonic() - down < 40:
        check_unavailable(await client.ask(CHAT, body_of(CHAT, model)))
        await asyncio.sleep(0.1)
    servers_down[1].restart()
    back = time.monotonic()
    while (await client.ask(CHAT, body_of(CHAT, model))).status != 200:
        assert time.monotonic() - back < BACK_WITHIN
        await asyncio.sleep(0.1)


async def test_one_trial_per_server_and_backoff(case: Case, servers: Servers, client: Client, model: str) -> None:
    """A server that breaks off every request can count them: five eject it, then one after 1 s, 2 s, 4 s …"""
    server = servers(model)
    server.behave("die request rst")
    begun = time.monotonic()
    while time.monotonic() - begun < 8.5:
        replies = await asyncio.gather(*(client.ask(CHAT, body_of(CHAT, model)) for _ in range(2)))
        assert all(reply.status in (502, 503) for reply in replies)
        await asyncio.sleep(0.04)
    seen = [request.begun_at for request in server.log()]
    assert EJECTING <= len(seen) <= EJECTING + 1 + 3, "more than one request was tried per backoff"
    trials = seen[-3:]
    assert [round(later - earlier) for earlier, later in itertools.pairwise(trials)] == [2, 4]


async def test_a_flood_makes_one_trial(case: Case, servers: Servers, client: Client, model: str) -> None:
    """200 requests in the moment that a trial falls due: one goes through, the rest is told to come back."""
    server = servers(model)
    server.behave("refuse")
    check_unavailable(await client.ask(CHAT, body_of(CHAT, model)))
    server.behave()
    server.behave("slow_start 500")
    await asyncio.sleep(1.1)
    replies = await asyncio.gather(*(client.ask(CHAT, body_of(CHAT, model, text=str(n))) for n in range(200)))
    assert [reply.status for reply in replies].count(200) == 1
    assert len(server.calls()) == 1
    refused = [reply for reply in replies if reply.status != 200]
    assert {(reply.status, reply.code) for reply in refused} == {(503, "no_server_available")}


async def test_embeddings_too(case: Case, servers: Servers, client: Client, model: str) -> None:
    server = servers(model)
    server.kill()
    for number in range(3):
        check_unavailable(await client.ask(EMBEDDINGS, body_of(EMBEDDINGS, model, text=f"{case.prefix} {number}")))
