"""Backup requests and trials: what they are worth, what they may cost, and that they respect the servers' limits."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from tests.fleet.control import Fleet
from tests.gateway.fleet.conftest import Asker, Four, Reply, operate
from tests.held_up import HELD_UP

pytestmark = pytest.mark.faults

SLOW = 1.9
"""Seconds that a slow answer takes: less than any server has for its first byte."""
GAIN = 0.30
BUDGET = 0.05
CLOSED_WITHIN = min(1.0 + HELD_UP, 1.7)
"""Before the slow answer would have come."""
LEASE = 3.0
"""Seconds of a workload's place."""


def posts(*servers: Fleet) -> list[Any]:
    return [visit for server in servers for visit in server.log() if visit.method == "POST"]


@pytest.mark.parametrize(
    ("rule", "hedge_ms"),
    [
        pytest.param({}, 0, id="always"),
        pytest.param({"every": 10}, 100, id="in a tenth, fixed time"),
        pytest.param({"every": 10}, 0, id="in a tenth"),
        pytest.param({}, 100, id="always, fixed time"),
    ],
)
async def test_one_slow_server_of_three(four: Four, model: str, rule: dict[str, Any], hedge_ms: int) -> None:
    four.make_class(model, hedge_ms=hedge_ms)
    servers = [four.server(model, tokens=3) for _ in range(3)]
    servers[0].behave(f"slow_start {SLOW * 1000:.0f}", **rule)
    async with four.asking() as client:
        before = await client.paced(model, 60, 7)  # until each worker knows the servers
        asked_before = len(posts(*servers))
        replies = await client.paced(model, 40, 16)
    assert {reply.status for reply in before + replies} == {200}
    times = sorted(reply.seconds for reply in replies)
    assert times[int(0.99 * len(times))] < SLOW * (1 - GAIN), "without backup requests it is all of it"
    extra = len(posts(*servers)) - asked_before - len(replies)
    assert extra <= BUDGET * len(replies)
    losers = [visit for visit in posts(*servers) if visit.ended == "client_closed"]
    assert losers
    assert all(visit.ended_at - visit.begun_at < CLOSED_WITHIN for visit in losers)


async def hold(client: Asker, model: str, server: Fleet) -> None:
    """Takes a place on a server, for so long as a workload may have it."""
    body = {"request_id": f"w-{model}", "model_required": model, "preferred_servers": [server.server_id]}
    reply = await client.post("/orchestration/workload/distribute", body)
    assert (reply.status, reply.json()["assigned_server"]) == (200, server.server_id)


async def test_a_request_whose_backup_finds_no_place_is_not_lost(four: Four, model: str) -> None:
    four.make_class(model, hedge_ms=100)
    dies, full = four.server(model, weight=1000), four.server(model, max_concurrent=1)
    async with four.asking() as client:
        await client.paced(model, 60, 3)  # which pays for backup requests
        await hold(client, model, full)
        dies.behave("hang")
        asked = asyncio.create_task(client.chat(model))
        await asyncio.sleep(0.5)
        dies.kill()
        reply = await asked
    assert (reply.status, reply.server) == (200, full.server_id)
    assert reply.seconds < LEASE + 1 + HELD_UP


async def test_an_answer_that_comes_slowly_gets_none_once_it_has_begun(four: Four, model: str) -> None:
    four.make_class(model, hedge_ms=200)
    dribbles, idle = four.server(model, weight=1000), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 3)  # which pays for backup requests
        dribbles.behave("split size=20 gap_ms=50")
        idle.clear()
        replies = [await client.chat(model) for _ in range(5)]
    assert min(reply.seconds for reply in replies) > 0.5
    assert [attempts(four, reply) for reply in replies] == [{dribbles.server_id: "ok"}] * 5
    assert not posts(idle)


@pytest.mark.parametrize("before", ["role", "comments"])
async def test_a_stream_without_content_yet_gets_one_whatever_came_before(four: Four, model: str, before: str) -> None:
    """Servers say who speaks, or that they live, while they still read the prompt."""
    four.make_class(model, hedge_ms=200)
    reads, quick = four.server(model, weight=1000), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 3)  # which pays for backup requests
        if before == "role":
            reads.behave(f"stall chunk:0 {SLOW}")
        else:
            reads.behave("comments_only count=0")
        reply = await client.chat(model, stream=True)
        assert (reply.status, reply.server) == (200, quick.server_id)
        assert attempts(four, reply) == {reads.server_id: "cancelled", quick.server_id: "ok"}


def attempts(four: Four, reply: Reply) -> dict[str, str]:
    """What came of each, by the server, as the record says."""
    [record] = four.citadel.records(reply.headers["x-request-id"])
    found: Any = record["attempts"]
    assert len(found) == int(reply.headers["x-citadel-attempts"])
    return {attempt["server"]: attempt["outcome"] for attempt in found}


async def test_both_servers_of_a_race_are_told_in_headers_and_record(four: Four, model: str) -> None:
    four.make_class(model, hedge_ms=100)
    slow, quick = four.server(model, weight=1000), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 3)  # which pays for backup requests
        slow.behave(f"slow_start {SLOW * 1000:.0f}")
        for stream in (False, True):
            reply = await client.chat(model, stream=stream)
            assert (reply.status, reply.server) == (200, quick.server_id)
            assert attempts(four, reply) == {slow.server_id: "cancelled", quick.server_id: "ok"}


async def test_a_stream_cut_short_after_a_race_is_the_doing_of_the_server_that_won(four: Four, model: str) -> None:
    four.make_class(model, hedge_ms=100)
    slow, dies = four.server(model, weight=1000), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 3)
        slow.behave(f"slow_start {SLOW * 1000:.0f}")
        dies.behave("die chunk:2")
        reply = await client.chat(model, stream=True)
    assert (reply.status, reply.server) == (200, dies.server_id)
    assert b"stream_interrupted" in reply.body
    assert attempts(four, reply) == {slow.server_id: "cancelled", dies.server_id: "interrupted: disconnected"}


async def test_the_only_server_answers_what_it_has_though_it_is_given_up(four: Four, model: str) -> None:
    """An operator may fail one over that works, and nobody else could answer."""
    only = four.server(model)
    only.behave("slow_start 3000")
    async with four.asking() as client:
        asked = asyncio.create_task(client.chat(model))
        await only.until(lambda log: [visit for visit in log if visit.method == "POST"])
        operate(four, only, "failover/{}")
        reply = await asked
        assert reply.status == 200
        assert attempts(four, reply) == {only.server_id: "ok"}
        late = await client.chat(model)
    assert (late.status, late.code) == (503, "no_server_available")
    assert int(late.headers["retry-after"]) >= 1


async def test_a_trial_takes_a_place_too(four: Four, model: str) -> None:
    sick = four.server(model, max_concurrent=1, tokens=6)
    sick.behave("error 500")
    async with four.asking() as client:
        replies = await client.paced(model, 5, 12)
        assert 503 in {reply.status for reply in replies}, "it is out"
        sick.clear()
        sick.behave("slow_chunks 100")
        asked = []
        for number in range(8):
            asked.append(asyncio.create_task(client.chat(model, f"question {number}", stream=True)))
            await asyncio.sleep(0.4)
        replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} <= {200, 503}
    spans = sorted((visit.begun_at, visit.ended_at) for visit in posts(sick))
    assert len(spans) > 3
    overlaps = [now[1] - then[0] for now, then in pairwise(spans)]
    assert max(overlaps) < min(0.05 + HELD_UP, 0.2), "one at a time, but for what the server writes down late"
