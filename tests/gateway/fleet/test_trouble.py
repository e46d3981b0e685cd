"""Servers in trouble, seen by the traffic of four workers: they go out for all, and one request brings them back."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from apps.orchestration.health.watch import LOOK_EVERY
from tests.gateway.fleet.conftest import WORKERS, Asker, Four
from tests.held_up import HELD_UP

pytestmark = pytest.mark.faults


async def test_a_server_that_refuses_is_out_for_all_at_once(four: Four, model: str) -> None:
    dead, alive = four.server(model), four.server(model)
    dead.kill()
    async with four.asking() as client:
        replies = await client.paced(model, 50, 4)
    assert {reply.status for reply in replies} == {200}
    assert {reply.server for reply in replies} == {alive.server_id}
    late = [reply for reply in replies[100:] if reply.headers["x-citadel-attempts"] != "1"]
    assert len(late) <= 4, "but for a trial now and then nobody meets it any more"
    said = four.listed(dead)
    assert (said["health_status"], said["health_source"]) in {("unhealthy", "traffic"), ("unhealthy", "probe")}


async def test_one_trial_at_a_time_over_all_workers(four: Four, model: str) -> None:
    sick, _ = four.server(model), four.server(model)
    sick.behave("error 500")
    async with four.asking() as client:
        await client.paced(model, 50, 2)
        await four.until_listed(sick, "unhealthy", 2 + HELD_UP)
        sick.clear()
        begun = time.monotonic()
        replies = await client.paced(model, 50, 6)
        took = time.monotonic() - begun
    assert {reply.status for reply in replies} == {200}
    trials = [visit for visit in sick.log() if visit.method == "POST"]
    assert 1 <= len(trials) <= 4, f"after 1, 2 and 4 seconds, in {took:.0f}"


async def test_a_server_that_hangs_is_found_by_the_traffic_and_nobody_fails(four: Four, model: str) -> None:
    hung, well = four.server(model), four.server(model)
    async with four.asking() as client:
        warm = await client.paced(model, 60, 4)
        assert Counter(reply.server for reply in warm).keys() == {hung.server_id, well.server_id}
        hung.behave("hang")
        began = time.monotonic()
        replies = asyncio.create_task(client.paced(model, 20, 8))
        said = await four.until_listed(hung, "unhealthy", 15)
        found = time.monotonic() - began
        assert {reply.status for reply in await replies} == {200}
    assert said["health_source"] == "traffic"
    assert found < 8 + HELD_UP
    assert max(reply.seconds for reply in replies.result()) < 4.5 + HELD_UP


async def test_it_is_back_only_after_a_real_request_and_then_slowly(four: Four, model: str) -> None:
    sick, _ = four.server(model), four.server(model)
    sick.behave("error 500")
    async with four.asking() as client:
        await client.paced(model, 50, 2)
        await four.until_listed(sick, "unhealthy", 2 + HELD_UP)
        await asyncio.sleep(3)
        assert four.listed(sick)["health_status"] == "unhealthy", "its health page answers all the time"
        sick.behave()
        replies = await client.paced(model, 50, 10)
        assert four.listed(sick)["health_status"] == "healthy"
    assert {reply.status for reply in replies} == {200}
    served = [reply.server == sick.server_id for reply in replies]
    first = served.index(True)
    early, late = served[first : first + 50], served[-50:]
    assert sum(early) < 0.4 * len(early), "it begins with a part of its share"
    assert 15 <= sum(late) <= 35, "and ends with all of it"


async def test_no_answer_takes_back_what_a_webhook_says(four: Four, model: str) -> None:
    """Of all that was under way in any worker when it came."""
    sick, well = four.server(model), four.server(model)
    for server in (sick, well):
        server.behave("slow_start 500")
    async with four.asking() as client:
        replies = asyncio.create_task(client.paced(model, 40, 6 + HELD_UP))
        await asyncio.sleep(2)
        told = {"server_id": sick.server_id, "status": "unhealthy"}
        operator = {"authorization": f"Bearer {four.citadel.admin_key}"}
        assert (await client.post("/webhooks/server_status", told, operator)).status == 200
        await asyncio.sleep(2 * LOOK_EVERY + 1 + HELD_UP)
        sick.clear()
        assert {reply.status for reply in await replies} == {200}
    assert [visit for visit in sick.log() if visit.method == "POST"] == []


@pytest.mark.parametrize(
    ("strategy", "status"),
    [
        *[(strategy, 500) for strategy in ("weighted_round_robin", "least_busy", "peak_ewma")],
        *[("weighted_round_robin", status) for status in (401, 404, 405, 503)],
        ("least_busy", 404),
    ],
)
async def test_who_fails_fast_does_not_draw_the_traffic(four: Four, model: str, strategy: str, status: int) -> None:
    four.make_class(model, strategy=strategy)
    broken, *well = four.server(model), four.server(model), four.server(model)
    broken.behave(f"error status={status} body=nothing")
    for server in well:
        server.behave("slow_start 30")
    async with four.asking() as client:
        replies = await client.paced(model, 60, 10)
    assert {reply.status for reply in replies} == {200}
    met = len([visit for visit in broken.log() if visit.method == "POST"])
    assert met < 0.05 * len(replies)


async def test_an_endpoint_that_no_server_has_leaves_each_its_share_of_the_others(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(2)]
    async with four.asking() as client:
        body = {"model": model, "prompt": "[[behave:error status=404 body=nothing]]"}
        wrong = [await client.post("/v1/completions", body) for _ in range(8)]
        replies = await client.paced(model, 40, 1)
    assert {(reply.status, reply.code) for reply in wrong} == {(400, "unsupported_by_model")}
    assert {reply.status for reply in replies} == {200}
    served = Counter(reply.server for reply in replies)
    assert all(served[server.server_id] >= 15 for server in servers), served


async def test_failures_in_a_row_are_those_of_all_workers(four: Four, model: str) -> None:
    """With few requests: each worker alone would need five times as long."""
    broken, well = four.server(model), four.server(model)
    broken.behave("error 500")
    async with four.asking() as client:
        replies = await client.paced(model, 8, 4)
    assert {(reply.status, reply.server) for reply in replies} == {(200, well.server_id)}
    met = len([visit for visit in broken.log() if visit.method == "POST"])
    assert 5 <= met <= 8, "and what was under way, and a trial or two"
    assert four.listed(broken)["health_status"] == "unhealthy"


async def test_one_request_that_makes_every_server_fail_does_no_harm(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(3)]
    async with four.asking() as client:
        poison = "[[behave:die request rst]]"
        calm = asyncio.create_task(client.paced(model, 40, 5))
        bad = []
        for _ in range(12):
            bad.append(await client.chat(model, poison))
            await asyncio.sleep(0.2)
        good = await calm
    assert {reply.status for reply in good} == {200}
    assert {reply.status for reply in bad} == {502}
    tried = {
        (visit.headers["x-request-id"], server.server_id)
        for server in servers
        for visit in server.log()
        if poison in visit.body
    }
    assert len(tried) <= 12 + WORKERS, "two servers for the first in each worker, then one"
    out = [server for server in servers if four.listed(server)["health_status"] == "unhealthy"]
    assert len(out) <= 1


@pytest.mark.parametrize("pace", [0, 40])
async def test_one_request_that_takes_every_server_too_long_does_no_harm(four: Four, model: str, pace: int) -> None:
    """Sent again as clients do, beside others that are answered or alone."""
    servers = [four.server(model) for _ in range(4)]
    poison = "[[behave:hang]]"
    async with four.asking() as client:
        await client.paced(model, 100, 4)  # until each worker knows the servers
        calm = asyncio.create_task(client.paced(model, pace, 11)) if pace else None
        bad = [await client.chat(model, poison) for _ in range(3)]
        out = [server for server in servers if four.listed(server)["health_status"] == "unhealthy"]
        good = await calm if calm else []
    assert {(reply.status, reply.code) for reply in bad} == {(504, "upstream_timeout")}
    assert bad[0].headers["x-citadel-attempts"] == "2"
    assert {reply.headers["x-citadel-attempts"] for reply in bad} <= {"1", "2"}
    assert len(out) <= 1
    assert bool(good) is bool(pace)
    assert {reply.status for reply in good} <= {200}
    assert max((reply.seconds for reply in good), default=0.0) < 1 + HELD_UP


async def test_traffic_alone_never_takes_out_more_than_half(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(4)]
    for server in servers:
        server.behave("error 500")
    async with four.asking() as client:
        await client.paced(model, 50, 4)
    out = [server for server in servers if four.listed(server)["health_status"] == "unhealthy"]
    assert 1 <= len(out) <= 2


async def test_all_down_is_said_at_once_and_service_is_back_soon(four: Four, model: str) -> None:
    servers = [four.server(model) for _ in range(2)]
    for server in servers:
        server.kill()
    async with four.asking() as client:
        await client.paced(model, 20, 3)
        down = await client.paced(model, 20, 2)
        assert {(reply.status, reply.code) for reply in down} == {(503, "no_server_available")}
        assert max(reply.seconds for reply in down if not reply.tried) <= 0.1 + HELD_UP, "all but the trials"
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in down)
        servers[0].restart()
        back = time.monotonic()
        while (await client.chat(model)).status != 200:
            assert time.monotonic() - back < 5 + HELD_UP
            await asyncio.sleep(0.1)


async def test_hedging_cuts_the_tail_and_costs_little(four: Four, model: str) -> None:
    four.make_class(model, hedge_ms=150)
    servers = [four.server(model, tokens=3) for _ in range(3)]
    servers[0].behave("slow_start 1900", every=10)
    async with four.asking() as client:
        replies = await client.paced(model, 40, 10)
    assert {reply.status for reply in replies} == {200}
    slow = sorted(reply.seconds for reply in replies)
    visits = [visit for server in servers for visit in server.log() if visit.method == "POST"]
    assert len(visits) - len(replies) <= 0.05 * len(replies)
    assert slow[int(0.99 * len(slow))] < 1.4, "a request in thirty would take 1.9 s"
    losers = [visit for visit in servers[0].log() if visit.ended == "client_closed"]
    assert losers
    assert all(visit.ended_at - visit.begun_at < min(1.2 + HELD_UP, 1.7) for visit in losers if visit.ended_at)


async def test_a_server_that_is_busy_is_left_alone_for_a_while(four: Four, model: str) -> None:
    busy, well = four.server(model), four.server(model)
    busy.behave("error 429")
    async with four.asking() as client:
        await client.paced(model, 60, 1)
        busy.clear()
        replies = await client.paced(model, 60, 8)
        met = len([visit for visit in busy.log() if visit.method == "POST"])
        busy.behave("error 429 retry_after=20")
        await client.paced(model, 60, 4)
        busy.behave()
        busy.clear()
        later = await client.paced(model, 30, 4)
        order = await explained(client, model)
    assert {reply.status for reply in replies + later} == {200}
    assert met < 0.1 * len(replies)
    assert {reply.server for reply in later} == {well.server_id}, "it said for how long"
    assert [(one["server_id"], one["paused"]) for one in order] == [(well.server_id, False), (busy.server_id, True)]


async def test_a_busy_server_is_last_and_not_lost(four: Four, model: str) -> None:
    busy = four.server(model)
    async with four.asking() as client:
        busy.behave("error 429 retry_after=20")
        assert {(reply.status, reply.code) for reply in await client.paced(model, 20, 1)} == {(429, "server_busy")}
        busy.behave()
        assert {reply.status for reply in await client.paced(model, 20, 1)} == {200}


async def test_who_does_not_hold_the_model_any_more_is_asked_for_its_models(four: Four, model: str) -> None:
    lost, well = four.server(model), four.server(model)
    await asyncio.sleep(2)  # until the clock of the fleet knows it
    lost.clear()
    lost.behave("error 404")
    async with four.asking() as client:
        replies = await client.paced(model, 40, 3)
    assert {reply.status for reply in replies} == {200}
    assert {reply.server for reply in replies} == {well.server_id}
    assert len([visit for visit in lost.log() if visit.method == "POST"]) <= 2 * WORKERS
    deadline = time.monotonic() + 5 + HELD_UP
    while not [visit for visit in lost.log(probes=True) if visit.path == "/v1/models"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def explained(client: Asker, model: str) -> list[dict[str, Any]]:
    """The order in which a worker would ask the servers."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    return list((await client.post("/orchestration/route/explain", body)).json()["order"])


@pytest.mark.parametrize("strategy", ["weighted_round_robin", "least_busy", "peak_ewma"])
async def test_two_of_three_that_fail_fast_do_not_draw_the_traffic(four: Four, model: str, strategy: str) -> None:
    """One of them may not be put out by traffic alone: it is asked last."""
    four.make_class(model, strategy=strategy)
    *broken, well = four.server(model), four.server(model), four.server(model)
    for server in broken:
        server.behave("error 500")
    well.behave("slow_start 30")
    async with four.asking() as client:
        await client.paced(model, 60, 1)
        replies = await client.paced(model, 60, 10)
    assert [reply.status for reply in replies].count(200) >= 0.99 * len(replies)
    for server in broken:
        assert len([visit for visit in server.log() if visit.method == "POST"]) < 0.05 * len(replies) + 30


async def test_a_dead_server_does_not_keep_in_one_that_fails(four: Four, model: str) -> None:
    """Half of those that live: of three of which one is dead, the second goes out too; never the last."""
    dead, broken, well = four.server(model), four.server(model), four.server(model)
    dead.kill()
    async with four.asking() as client:
        await client.paced(model, 20, 2)
        assert four.listed(dead)["health_status"] == "unhealthy"
        broken.behave("error 500")
        replies = await client.paced(model, 20, 4)
        assert four.listed(broken)["health_status"] == "unhealthy"
        well.behave("error 500")
        await client.paced(model, 20, 3)
        assert four.listed(well)["health_status"] != "unhealthy"
    assert {(reply.status, reply.server) for reply in replies} == {(200, well.server_id)}
