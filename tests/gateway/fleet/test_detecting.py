"""Row 3 with little traffic: what no single worker sees often enough, all of them together do."""

import asyncio
import time

import pytest

from apps.orchestration.health.watch import LOADS_EVERY
from tests.gateway.fleet.conftest import WORKERS, Four
from tests.held_up import HELD_UP

pytestmark = pytest.mark.faults

FOUND_WITHIN = 10.0 + HELD_UP
KNOWN_LIMIT = 4.5 + HELD_UP
"""Seconds: the shortest limit for a first byte here, and as much again; an unknown server has 20."""


async def test_a_server_that_hangs_is_found_though_there_is_little_traffic(four: Four, model: str) -> None:
    hung, _ = four.server(model), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 4)
        hung.behave("hang")
        began = time.monotonic()
        replies = asyncio.create_task(client.paced(model, 1, 14))
        said = await four.until_listed(hung, "unhealthy", FOUND_WITHIN)
        found = time.monotonic() - began
        assert {reply.status for reply in await replies} == {200}
    assert (said["health_source"], said["health_reason"]) == ("traffic", "timeout")
    assert found < FOUND_WITHIN


async def test_a_server_that_answers_in_between_is_not_taken_for_one_that_hangs(four: Four, model: str) -> None:
    busy, _ = four.server(model), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 60, 4)
        busy.behave("hang", every=25)
        replies = await client.paced(model, 12, 15)
        said = four.listed(busy)
    assert {reply.status for reply in replies} == {200}
    assert said["health_status"] != "unhealthy", said


async def test_a_stopped_server_is_found_though_its_places_let_few_requests_wait_there(four: Four, model: str) -> None:
    stopped, _ = four.server(model, max_concurrent=2), four.server(model, max_concurrent=2)
    async with four.asking() as client:
        await client.paced(model, 60, 4)
        stopped.stop()
        began = time.monotonic()
        replies = asyncio.create_task(client.paced(model, 5, 10))
        await four.until_listed(stopped, "unhealthy", FOUND_WITHIN)
        found = time.monotonic() - began
        statuses = {reply.status for reply in await replies}
        stopped.cont()
    assert statuses == {200}
    assert found < FOUND_WITHIN


async def test_answers_to_all_workers_together_make_a_server_known(four: Four, model: str) -> None:
    hung, _ = four.server(model), four.server(model)
    async with four.asking() as client:
        await client.paced(model, 20, 3)
        answered = [visit for visit in hung.log() if visit.method == "POST"]
        assert 20 <= len(answered) < 20 * WORKERS, "enough for all, too few for each"
        await asyncio.sleep(LOADS_EVERY * 2 + 0.5)
        hung.behave("hang")
        replies = await asyncio.gather(*(client.chat(model, f"question {number}") for number in range(8)))
    assert {reply.status for reply in replies} == {200}
    assert max(reply.seconds for reply in replies) < KNOWN_LIMIT
