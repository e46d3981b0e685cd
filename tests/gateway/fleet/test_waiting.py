"""The waiting room over four workers: shared evenly whatever the flood, and in step with a fleet that moves."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.control import Fleet
from tests.gateway.fleet.conftest import WORKERS, Asker, Four, Reply, operate
from tests.held_up import HELD_UP

ROOM = 20
"""As `Four` is configured."""


def texts(server: Fleet) -> list[str]:
    """What the server was asked, in this order."""
    visits = sorted((visit for visit in server.log() if visit.method == "POST"), key=lambda visit: visit.begun_at)
    return [str(visit.json()["messages"][0]["content"]) for visit in visits]


def running(server: Fleet) -> int:
    """Requests that are there now."""
    return sum(visit.method == "POST" and not visit.ended_at for visit in server.log())


@asynccontextmanager
async def asked(
    client: Asker, model: str, count: int, pause: float = 0.03, **more: Any
) -> AsyncIterator[list["asyncio.Task[Reply]"]]:
    """So many requests, one after the other, under way until the end of the block; the first, which takes
    the place where there is one, gets more of a start.
    """
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(client.chat(model, f"number {number}", **more)))
        await asyncio.sleep(pause if number else max(pause, 0.3))
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("flood", [15, pytest.param(60, marks=pytest.mark.faults)])
async def test_two_teams_share_evenly_whatever_the_size_of_the_flood(four: Four, model: str, flood: int) -> None:
    """The smaller one fits into the room, the larger one fills it for as long as it lasts."""
    server = four.server(model, max_concurrent=1, behave=["slow_start 80"])
    refused: Counter[str] = Counter()
    stop = time.monotonic() + 8

    async def keep_asking(client: Asker, team: str) -> None:
        while time.monotonic() < stop:
            reply = await client.chat(model, team)
            if reply.status != 200:
                assert reply.code in ("queue_full", "queue_too_long")
                refused[team] += 1
                await asyncio.sleep(0.3)

    async with four.asking() as flooding, four.asking() as calm:
        tasks = [asyncio.create_task(keep_asking(flooding, "flood")) for _ in range(flood)]
        await asyncio.sleep(2)
        tasks += [asyncio.create_task(keep_asking(calm, "calm")) for _ in range(3)]
        await asyncio.gather(*tasks)
    seen = texts(server)
    shared = Counter(seen[seen.index("calm") :][:50])
    assert 22 <= shared["calm"] <= 28, (shared, refused)
    assert not refused["calm"], refused


async def test_critical_is_let_in_where_low_ones_have_filled_the_room(four: Four, model: str) -> None:
    """And who makes room for it is told where it stood."""
    server = four.server(model, max_concurrent=4, behave=["slow_start 1500"])
    low_ones = {"x-citadel-priority": "low"}
    async with four.asking() as client, asked(client, model, 4 + ROOM, headers=low_ones) as low:
        reply = await client.chat(model, "critical", {"x-citadel-priority": "critical"})
        assert reply.status == 200
        [evicted] = [task.result() for task in low if task.done() and task.result().status != 200]
    assert texts(server).index("critical") <= 8
    assert (evicted.status, evicted.code) == (503, "queue_full")
    tells_where_it_stood(evicted, ROOM)


def tells_where_it_stood(reply: Reply, position: int) -> None:
    """The position and the expected wait: for people, and for programs."""
    headers, message = reply.headers, reply.json()["error"]["message"]
    assert int(headers["x-citadel-queue-position"]) == position
    assert int(headers["retry-after"]) >= 1
    assert int(headers["x-citadel-queue-ms"]) >= 0
    assert f"position was {position}, with an expected wait of about {headers['retry-after']} s" in message


async def test_who_waits_in_vain_is_told_where_it_stood(four: Four, model: str) -> None:
    four.server(model, max_concurrent=1).behave("hang")
    async with four.asking() as client, asked(client, model, 1):
        reply = await client.chat(model, "in vain")
    assert (reply.status, reply.code) == (503, "queue_timeout")
    tells_where_it_stood(reply, 1)
    assert int(reply.headers["x-citadel-queue-ms"]) >= 9_900


@pytest.mark.parametrize("what", ["servers/{}/drain", "servers/{}/disable", "failover/{}"])
async def test_who_waits_for_a_server_that_is_taken_out_goes_to_another(four: Four, model: str, what: str) -> None:
    gone, other = (four.server(model, max_concurrent=1, behave=["slow_start 1000"]) for _ in range(2))
    async with four.asking() as client, asked(client, model, 8, pause=0.1) as tasks:
        operate(four, gone, what)
        four.citadel.settle()
        before = len(texts(gone))
        replies = await asyncio.gather(*tasks)
    assert {reply.status for reply in replies} == {200}
    assert len(texts(gone)) == before
    later = [text for text in texts(other) if text not in ("number 0", "number 1", *texts(gone))]
    assert later == sorted(later), "in the order in which they came"


async def test_who_waits_for_a_server_that_breaks_goes_to_another(four: Four, model: str) -> None:
    gone, other = (four.server(model, max_concurrent=1, behave=["slow_start 500"]) for _ in range(2))
    async with four.asking() as client, asked(client, model, 8) as tasks:
        gone.kill()
        replies = await asyncio.gather(*tasks)
    assert {reply.status for reply in replies} == {200}
    assert {reply.server for reply in replies[2:]} == {other.server_id}
    tried_both = sum(int(reply.headers["x-citadel-attempts"]) > 1 for reply in replies)
    assert tried_both <= 1 + WORKERS + 1, "the one that ran there; each worker notices once; and a trial"


@pytest.mark.parametrize("how", ["breaks", "failover/{}"])
async def test_who_had_a_place_on_a_server_that_goes_is_next_on_another(four: Four, model: str, how: str) -> None:
    gone, other = (four.server(model, max_concurrent=1) for _ in range(2))
    gone.behave("hang")
    other.behave("slow_start 700")
    async with four.asking() as client, asked(client, model, 8, pause=0.1) as tasks:
        await other.until(lambda log: [visit for visit in log if visit.method == "POST" and visit.ended])
        before = texts(other)
        first = texts(gone)
        if how == "breaks":
            gone.kill()
        else:
            operate(four, gone, how)
        replies = await asyncio.gather(*tasks)
    assert {reply.status for reply in replies} == {200}
    assert len(first) == 1
    after = [text for text in texts(other) if text not in before]
    assert after.index(first[0]) <= 1, "behind the one at most that had its place there by then"
    rest = [text for text in after[1:] if text != first[0]]
    assert rest == sorted(rest), "the others as they came"


async def test_who_waits_for_the_last_server_is_told_at_once_that_it_is_out(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    server.behave("hang")
    async with four.asking() as client, asked(client, model, 6) as tasks:
        operate(four, server, "servers/{}/disable")
        begun = time.monotonic()
        replies = await asyncio.wait_for(asyncio.gather(*tasks[1:]), 5 + HELD_UP)
        assert time.monotonic() - begun < 1.5 + HELD_UP
    assert {(reply.status, reply.code) for reply in replies} == {(503, "no_server_available")}


@pytest.mark.parametrize("limit", [8, 0])
async def test_who_waits_goes_to_a_new_server_at_once(four: Four, model: str, limit: int) -> None:
    four.server(model, max_concurrent=1).behave("hang")
    async with four.asking() as client, asked(client, model, 5) as tasks:
        new = four.server(model, max_concurrent=limit)
        replies = await asyncio.wait_for(asyncio.gather(*tasks[1:]), 3 + HELD_UP)
    assert {(reply.status, reply.server) for reply in replies} == {(200, new.server_id)}


async def test_a_new_server_takes_those_first_who_have_waited_for_longest(four: Four, model: str) -> None:
    """As far as one worker can tell: workers hear of a new server at slightly different times."""
    four.server(model, max_concurrent=1).behave("hang")
    async with four.asking() as client, asked(client, model, 13, pause=0.1) as tasks:
        new = four.server(model, max_concurrent=1, behave=["slow_start 150"])
        await asyncio.wait_for(asyncio.gather(*tasks[1:]), 8 + HELD_UP)
    numbers = [int(text.split()[1]) for text in texts(new)][4:]
    assert numbers == sorted(numbers)


async def test_who_waits_goes_to_a_server_that_comes_back(four: Four, model: str) -> None:
    back = four.server(model, max_concurrent=4)
    operate(four, back, "servers/{}/disable")
    four.server(model, max_concurrent=1).behave("hang")
    async with four.asking() as client, asked(client, model, 4) as tasks:
        operate(four, back, "servers/{}/enable")
        replies = await asyncio.wait_for(asyncio.gather(*tasks[1:]), 3 + HELD_UP)
    assert {reply.server for reply in replies} == {back.server_id}


async def test_who_waits_profits_of_a_raised_limit_at_once(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    server.behave("hang")
    async with four.asking() as client, asked(client, model, 8):
        assert running(server) == 1
        four.register(server, model, max_concurrent=5)
        await asyncio.sleep(1)
        assert running(server) == 5
