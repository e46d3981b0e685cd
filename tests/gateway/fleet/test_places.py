"""Places on servers, and waiting for one: over four workers, and when some of them die."""

import asyncio
import os
import signal
import time
from collections import Counter

import psutil
import pytest
import redis

from tests.faults.invariants import eventually, stores
from tests.gateway.fleet.conftest import Four, most_at_once
from tests.held_up import HELD_UP


async def test_no_server_sees_more_than_its_limit(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=2, behave=["slow_start 100"])
    async with four.asking() as client:
        replies = await asyncio.gather(*(client.chat(model) for _ in range(16)))
    assert {reply.status for reply in replies} == {200}
    assert most_at_once(server) == 2
    assert any(int(reply.headers["x-citadel-queue-ms"]) > 50 for reply in replies)


async def test_nor_while_workers_are_killed_and_nothing_is_left_of_them(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=2, behave=["slow_start 300"])
    async with four.asking() as client:
        asked = [asyncio.create_task(client.chat(model)) for _ in range(8)]
        await asyncio.sleep(0.35)
        while sum(held > 0 for held in connections(four).values()) < 3 and len(asked) < 18:
            asked.append(asyncio.create_task(client.chat(model)))
            await asyncio.sleep(0.02)
        busiest, second, third, idlest = connections(four).most_common()
        for worker, _ in (busiest, second if third[1] else idlest):
            os.kill(worker, signal.SIGKILL)
        killed_at = time.monotonic()
        replies = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(max(0.0, killed_at + 5 - time.monotonic()))
        assert most_at_once(server) <= 2
        after = await asyncio.gather(*(client.chat(model) for _ in range(2)))
    assert [reply.status for reply in after] == [200, 200]
    assert all(reply.seconds < 1.5 + HELD_UP for reply in after), "the dead workers' places are free"
    assert most_at_once(server) <= 2
    answered = [reply for reply in replies if not isinstance(reply, BaseException)]
    assert answered
    assert all(reply.status == 200 for reply in answered)
    await all_workers(four)


async def test_what_a_dead_worker_held_is_gone_though_nobody_asks(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=8)
    server.behave("hang")
    held = f"limits:running:@{server.server_id}"
    with redis.Redis.from_url(stores(four.citadel)["REDIS_URL"]) as state:
        async with four.asking() as client:
            asked = [asyncio.create_task(client.chat(model)) for _ in range(6)]
            await asyncio.sleep(0.35)
            await asyncio.to_thread(eventually, lambda: 6 - sum(map(int, state.hvals(held))))
            [[busiest, _]] = connections(four).most_common(1)
            os.kill(busiest, signal.SIGKILL)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        eventually(lambda: state.hgetall(held), within=5 + HELD_UP)
    await all_workers(four)


def connections(four: Four) -> Counter[int]:
    """How many clients are connected to each worker, by its process id: the kernel gives them to whom it likes."""
    held: Counter[int] = Counter()
    for number in range(1, 5):
        worker = psutil.Process(int((four.citadel.home / "run" / f"web-{number}.pid").read_text()))
        port = int(four.citadel.url.rpartition(":")[2])
        open_ones = [one for one in worker.net_connections("tcp") if one.laddr.port == port]
        held[worker.pid] = sum(one.status == psutil.CONN_ESTABLISHED for one in open_ones)
    return held


async def all_workers(four: Four) -> None:
    """Waits until the supervisor has started the dead ones anew."""
    deadline = time.monotonic() + 20
    for number in range(1, 5):
        while True:
            assert time.monotonic() < deadline
            try:
                os.kill(int((four.citadel.home / "run" / f"web-{number}.pid").read_text()), 0)
                break
            except (OSError, ValueError):
                await asyncio.sleep(0.1)
    await asyncio.sleep(2)


async def test_critical_passes_low(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1, behave=["slow_start 200"])
    async with four.asking() as client:
        asked = [asyncio.create_task(client.chat(model, "first"))]
        await asyncio.sleep(0.1)
        for priority in ("low", "low", "low", "high", "critical"):
            headers = {"x-citadel-priority": priority}
            asked.append(asyncio.create_task(client.chat(model, f"I am {priority}", headers)))
            await asyncio.sleep(0.02)
        replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} == {200}
    seen = [visit.json()["messages"][0]["content"] for visit in server.log() if visit.method == "POST"]
    assert seen == ["first", "I am critical", "I am high", "I am low", "I am low", "I am low"]


async def test_a_key_claims_no_more_than_it_may(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1, behave=["slow_start 200"])
    words = ("key", "create", "--team", model, "--name", "modest", "--requests-per-minute", "0", "--concurrent", "0")
    modest = {"authorization": f"Bearer {four.elsewhere.command(*words, '--max-priority', 'low')}"}
    async with four.asking() as client:
        asked = [asyncio.create_task(client.chat(model, "first"))]
        await asyncio.sleep(0.1)
        for text, headers in (
            ("modest, critical", modest | {"x-citadel-priority": "critical"}),
            ("modest, unsaid", modest),
            ("another, normal", {"x-citadel-priority": "normal"}),
        ):
            asked.append(asyncio.create_task(client.chat(model, text, headers)))
            await asyncio.sleep(0.05)
        replies = await asyncio.gather(*asked)
    assert {reply.status for reply in replies} == {200}
    seen = [visit.json()["messages"][0]["content"] for visit in server.log() if visit.method == "POST"]
    assert seen == ["first", "another, normal", "modest, critical", "modest, unsaid"]


async def test_a_priority_that_there_is_not_is_refused(four: Four, model: str) -> None:
    four.server(model)
    async with four.asking() as client:
        reply = await client.chat(model, headers={"x-citadel-priority": "urgent"})
    assert reply.status == 400
    assert b"low, normal, high, critical" in reply.body


async def test_two_teams_share_evenly_though_one_floods(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=2, behave=["slow_start 50"])
    async with four.asking() as flooding, four.asking() as calm:
        tasks = [asyncio.create_task(flooding.chat(model, "flood")) for _ in range(14)]
        await asyncio.sleep(0.06)
        tasks += [asyncio.create_task(calm.chat(model, "calm")) for _ in range(6)]
        replies = await asyncio.gather(*tasks)
    assert {reply.status for reply in replies} == {200}
    seen = [visit.json()["messages"][0]["content"] for visit in server.log() if visit.method == "POST"]
    first_calm = seen.index("calm")
    shared = Counter(seen[first_calm : first_calm + 8])
    assert shared["calm"] in (4, 5), seen


async def test_a_full_room_says_so_at_once(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1)
    server.behave("hang")
    async with four.asking() as client:
        held = [asyncio.create_task(client.chat(model)) for _ in range(21)]
        await asyncio.sleep(0.5)
        refused = await asyncio.gather(*(client.chat(model) for _ in range(10)))
        one_by_one = [await client.chat(model) for _ in range(10)]
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    refused += one_by_one
    assert {(reply.status, reply.code) for reply in refused} <= {(503, "queue_full"), (503, "queue_too_long")}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert max(reply.seconds for reply in one_by_one) <= 0.1 + HELD_UP


async def test_who_leaves_the_room_makes_room(four: Four, model: str) -> None:
    server = four.server(model, max_concurrent=1, behave=["slow_start 300"])
    async with four.asking() as client:
        first = asyncio.create_task(client.chat(model, "first"))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(client.chat(model, "gone"))
        await asyncio.sleep(0.05)
        last = asyncio.create_task(client.chat(model, "last"))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert (await first).status == 200
        reply = await last
        assert reply.status == 200
        assert reply.seconds < 1 + HELD_UP
    seen = [visit.json()["messages"][0]["content"] for visit in server.log() if visit.method == "POST"]
    assert seen == ["first", "last"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_server_is_passed_over_for_one_with_room(four: Four, model: str, stream: bool) -> None:
    small = four.server(model, max_concurrent=1, behave=["slow_start 300"])
    large = four.server(model, behave=["slow_start 300"])
    async with four.asking() as client:
        replies = await asyncio.gather(*(client.chat(model, stream=stream) for _ in range(10)))
    assert {reply.status for reply in replies} == {200}
    assert most_at_once(small) == 1
    assert len([visit for visit in large.log() if visit.method == "POST"]) >= 9, "nobody waits for the small one"
    assert max(int(reply.headers.get("x-citadel-queue-ms", 0)) for reply in replies) < 200 + 1000 * HELD_UP


async def test_others_help_a_class_whose_own_server_is_full_or_dies(four: Four, model: str) -> None:
    own = four.server(model, max_concurrent=1, behave=["slow_start 300"])
    other = four.server(model)
    four.make_class(model, servers=[own.server_id])
    async with four.asking() as client:
        alone = [await client.chat(model) for _ in range(3)]
        assert {reply.server for reply in alone} == {own.server_id}
        at_once = await asyncio.gather(*(client.chat(model) for _ in range(8)))
        assert {reply.status for reply in at_once} == {200}
        assert {reply.server for reply in at_once} == {own.server_id, other.server_id}
        assert most_at_once(own) == 1
        own.kill()
        after = await asyncio.gather(*(client.chat(model) for _ in range(16)))
    assert Counter((reply.status, reply.server) for reply in after) == {(200, other.server_id): 16}


async def test_nobody_helps_a_class_without_a_fallback(four: Four, model: str) -> None:
    own = four.server(model, max_concurrent=1, behave=["slow_start 300"])
    other = four.server(model)
    four.make_class(model, servers=[own.server_id], fallback=False)
    async with four.asking() as client:
        at_once = await asyncio.gather(*(client.chat(model) for _ in range(4)))
    assert Counter((reply.status, reply.server) for reply in at_once) == {(200, own.server_id): 4}
    assert not [visit for visit in other.log() if visit.method == "POST"]
