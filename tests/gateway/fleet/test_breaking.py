"""Rows 1, 3 and 4 as four workers see them: servers die, fall silent, stop, stall, and come back."""

import asyncio
import json
import time
from collections import Counter

import psycopg
import pytest

from apps.orchestration.health.window import ENOUGH
from tests.gateway.fleet.conftest import WORKERS, Four
from tests.held_up import HELD_UP

pytestmark = pytest.mark.faults

REFUSED_DELAY = 1.0 + HELD_UP
SILENT_DELAY = 3.0 + HELD_UP
EJECTED_WITHIN = 5.0 + HELD_UP
SHARE_FOUND_WITHIN = 40.0 + HELD_UP
HANGING_EJECTED_WITHIN = 15.0 + HELD_UP
IDLE = 30.0
"""The usual limit of a stream without progress."""


async def test_a_silent_host_costs_three_seconds_at_most(four: Four, model: str) -> None:
    silent, well = four.server(model), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 20, 2)
        silent.behave("silent_host close")
        began = time.monotonic()
        replies = asyncio.create_task(client.paced(model, 20, 8 + HELD_UP))
        await four.until_listed(silent, "unhealthy", EJECTED_WITHIN)
        found = time.monotonic()
        assert found - began <= EJECTED_WITHIN
        assert {reply.status for reply in await replies} == {200}
    assert max(reply.seconds for reply in replies.result()) <= SILENT_DELAY
    late = [reply for reply in replies.result() if reply.begun > found + 1]  # all workers have heard of it by then
    assert {reply.server for reply in late} == {well.server_id}
    assert sum(reply.seconds > REFUSED_DELAY for reply in late) <= 3, "but for a trial now and then nobody meets it"


async def test_none_of_a_thousand_fails_when_a_server_is_killed(four: Four, model: str) -> None:
    dies, lives = four.server(model), four.server(model)
    async with four.asking() as client:
        asked = asyncio.create_task(client.paced(model, 50, 20))
        await asyncio.sleep(6)
        dies.kill()
        died = time.monotonic()
        await four.until_listed(dies, "unhealthy", EJECTED_WITHIN)
        replies = await asked
    assert Counter(reply.status for reply in replies) == {200: 1000}
    moved = [reply for reply in replies if reply.headers["x-citadel-attempts"] != "1"]
    assert max(reply.seconds for reply in moved) <= REFUSED_DELAY
    late = [reply for reply in moved if reply.begun > died + EJECTED_WITHIN]
    assert len(late) <= 5, "but for trials nobody meets it any more"
    assert {reply.server for reply in replies if reply.begun > died} == {lives.server_id}


async def test_a_stopped_server_is_found_and_back_after_a_real_request(four: Four, model: str) -> None:
    stopped, _ = four.server(model), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 4)
        stopped.stop()
        began = time.monotonic()
        replies = asyncio.create_task(client.paced(model, 20, 8))
        said = await four.until_listed(stopped, "unhealthy", HANGING_EJECTED_WITHIN)
        assert said["health_source"] == "traffic"
        assert {reply.status for reply in await replies} == {200}
        assert time.monotonic() - began < HANGING_EJECTED_WITHIN
        stopped.cont()
        stopped.clear()
        await asyncio.sleep(1)
        assert four.listed(stopped)["health_status"] == "unhealthy", "nobody has asked it anything yet"
        back = await client.paced(model, 20, 6)
        said = four.listed(stopped)
    if said["health_status"] != "healthy":  # the traffic has nothing against it, nor has a probe but that one was slow
        assert (said["health_status"], said["health_source"]) == ("degraded", "probe")
        assert said["health_reason"] in ("slow", "critical")
    assert {reply.status for reply in back} == {200}
    assert stopped.server_id in {reply.server for reply in back}


async def test_a_server_that_fails_every_sixth_answer_is_found_though_each_worker_sees_few(
    four: Four, model: str
) -> None:
    fails, well = four.server(model), four.server(model)
    fails.behave("error 500", every=6)
    async with four.asking() as client:
        asked = asyncio.create_task(client.paced(model, 3, SHARE_FOUND_WITHIN))
        began = time.monotonic()
        while (said := four.listed(fails))["health_status"] != "unhealthy":
            assert time.monotonic() - began < SHARE_FOUND_WITHIN, said
            await asyncio.sleep(0.1)
        fails.behave("slow_start 20000")
        assert said["health_source"] == "traffic"
        assert len(fails.calls()) < WORKERS * ENOUGH, "no worker has seen enough by itself"
        await asyncio.sleep(0.5)
        before = len(fails.calls())
        assert {reply.status for reply in await client.paced(model, 20, 3)} == {200}
        assert len(fails.calls()) <= before + 2, "every worker leaves it to trials, one at a time"
        fails.behave()
        await four.until_listed(fails, "healthy", SHARE_FOUND_WITHIN)
        fails.behave("error 500", next=1)
        replies = await asked
        assert {reply.status for reply in replies} == {200}
        assert four.listed(fails)["health_status"] == "healthy", "it has begun anew"
    assert four.listed(well)["health_status"] == "healthy"


async def test_a_stream_that_stalls_for_half_a_minute_is_ended(four: Four, model: str) -> None:
    stalls, other = four.server(model, weight=1000), four.server(model)
    stalls.behave("stall chunk:3 90")
    async with four.asking() as client:
        reply = await client.chat(model, stream=True)
    events = [event.removeprefix("data: ") for event in reply.body.decode().split("\n\n") if event.startswith("data: ")]
    assert reply.status == 200
    *chunks, last = map(json.loads, events)
    assert len([chunk for chunk in chunks if chunk["choices"][0]["delta"].get("content")]) == 3
    assert last["error"]["code"] == "stream_interrupted"
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
    assert IDLE <= reply.seconds < IDLE + 2 + HELD_UP
    [visit] = await stalls.until(lambda log: [seen for seen in log if seen.method == "POST" and seen.ended])
    assert visit.ended == "client_closed"
    assert not [seen for seen in other.log() if seen.method == "POST"]


async def test_all_down_means_one_trial_for_each_server_and_backoff(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(2)]
    for server in servers:
        server.kill()
    async with four.asking() as client:
        await client.paced(model, 20, 1)
        begun = time.time()
        down = await client.paced(model, 20, 9)
        assert {(reply.status, reply.code) for reply in down} == {(503, "no_server_available")}
        untried = [reply.seconds for reply in down if not reply.tried]
        assert len(untried) >= 0.9 * len(down), "all but the trials"
        assert max(untried) <= 0.1 + HELD_UP
        servers[1].restart()
        back = time.monotonic()
        while (await client.chat(model)).status != 200:
            assert time.monotonic() < back + 5 + HELD_UP
            await asyncio.sleep(0.1)
    trials = await _attempts(four, model, begun, len(down))
    assert trials.keys() == {server.server_id for server in servers}
    assert all(2 <= count <= 5 for count in trials.values()), f"at once, after 1, 2 and 4 s, then each 4 s: {trials}"


async def _attempts(four: Four, model: str, since: float, requests: int) -> Counter[str]:
    """How often each server was tried, as the records of so many requests say."""
    found = "SELECT attempts FROM audit_record WHERE model = %s AND at > to_timestamp(%s) AND outcome <> 'ok'"
    with psycopg.connect(four.citadel.database_url, autocommit=True) as connection:
        deadline = time.monotonic() + 5 + HELD_UP
        while len(rows := connection.execute(found, (model, since)).fetchall()) < requests:
            assert time.monotonic() < deadline, f"{len(rows)} records of {requests}"
            await asyncio.sleep(0.1)
    return Counter(attempt["server"] for (attempts,) in rows for attempt in attempts)
