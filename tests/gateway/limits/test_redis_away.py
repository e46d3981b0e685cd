"""The limits while Redis can't be asked, and after: each worker goes by its share, the log says so, then all counts."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import redis

from apps.gateway.limits.worker import HEARTBEAT
from citadel.redis import Redis
from tests.faults.invariants import eventually
from tests.gateway.client import Client, chat
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import running, whole_lines

SETTINGS = {"CITADEL_DEMO_FLEET": "0", "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One whose Redis may be disturbed."""
    with running(tmp_path_factory.mktemp("own"), SETTINGS) as citadel, Elsewhere.on(citadel) as own:
        yield own


def times_logged(own: Elsewhere, event: bytes) -> int:
    """How often the worker has said that."""
    lines = whole_lines((own.citadel.home / "logs" / "web-1.log").read_bytes())
    return sum(b'"event": "%b"' % event in line for line in lines)


def counted_again(own: Elsewhere) -> None:
    """Waits until Redis counts, as the worker's log says last."""
    eventually(lambda: times_logged(own, b"requests_admitted_by_share") - times_logged(own, b"requests_counted_again"))


async def at_once(own: Elsewhere, client: Client, key: str, count: int) -> list[int]:
    """The statuses of so many equal requests at a time, while the server is slow."""
    own.server.behave("slow_start 700")
    replies = await asyncio.gather(*(client.post(chat(own.model), key=key) for _ in range(count)))
    own.server.behave()
    return sorted(reply.status for reply in replies)


async def test_redis_that_is_silent_under_traffic(own: Elsewhere) -> None:
    """Twice, with requests beginning and ending all the time: places are counted as before when it is back."""
    key, other = own.key(concurrent=3), own.key(concurrent=100)
    async with own.asking() as client:
        assert await at_once(own, client, key, 6) == [200] * 3 + [429] * 3
        for number in (1, 2):
            busy = [asyncio.create_task(keep_asking(own, client, other)) for _ in range(8)]
            with own.silent_redis():
                await asyncio.sleep(1.5)
                assert (await client.post(chat(own.model), key=key)).status == 200
            await asyncio.sleep(3)
            assert times_logged(own, b"requests_admitted_by_share") == number
            assert times_logged(own, b"requests_counted_again") == number
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            assert await at_once(own, client, key, 6) == [200] * 3 + [429] * 3
    assert times_logged(own, b"requests_admitted_by_share") == 2
    assert not times_logged(own, b"limits_heartbeat_failed")


async def keep_asking(own: Elsewhere, client: Client, key: str) -> None:
    """One request after the other."""
    while True:
        assert (await client.post(chat(own.model), key=key)).status == 200


async def test_limits_are_shared_with_the_workers_of_other_machines(own: Elsewhere) -> None:
    """Which lived when Redis was last asked; workloads are none."""
    key = own.key(requests_per_minute=9)
    with redis.Redis.from_url(own.citadel.redis_url) as state:
        seconds, _ = state.time()  # type: ignore[misc]
        soon = (seconds + 4) * 1000
        others = {"other-1": soon, "other-2": soon, "work:somebody/w:1": soon, "dead": soon - 5000}
        state.zadd("limits:workers", others)
    async with own.asking() as client:
        await asyncio.sleep(2 * HEARTBEAT)
        with own.silent_redis():
            said = [(await client.post(chat(own.model), key=key)).status for _ in range(9)]
    assert said == [200] * 3 + [429] * 6


async def test_what_needs_more_than_any_minute_has_is_told_so_without_redis_too(own: Elsewhere) -> None:
    key = own.key(tokens_per_minute=50, requests_per_minute=1)
    async with own.asking() as client:
        with own.silent_redis():
            for _ in range(2):
                reply = await client.post(chat(own.model, max_tokens=100), key=key)
                assert (reply.status, reply.code) == (429, "token_limit_too_small"), reply.body


async def test_a_budget_holds_without_redis(own: Elsewhere) -> None:
    """And what was spent meanwhile counts when Redis is back, which has never heard of it.

    A request claims some 50 tokens and uses 7: two of them fit into 60, a third may while the last one's record is
    not written yet.
    """
    key = own.key()
    async with own.asking() as client:
        asked = {"period": "total", "key_id": key.split("_")[1], "tokens": 60}
        assert (await client.post(asked, "/api/v1/budgets", key=own.citadel.admin_key)).status == 200
        own.citadel.settle()
        with own.silent_redis():
            said = await spending(own, client, key, 8)
        assert (said[0], said[-1]) == ("", "budget_exceeded")
        counted_again(own)
        await asyncio.sleep(1 + HELD_UP)
        said += await spending(own, client, key, 4)
        assert said[-1] == "budget_exceeded"
        assert 2 <= said.count("") <= 3


async def spending(own: Elsewhere, client: Client, key: str, count: int) -> list[str]:
    """What so many requests, one after the other, are told: nothing where they are answered."""
    return [(await client.post(chat(own.model, max_tokens=5), key=key)).code for _ in range(count)]


async def test_redis_that_answers_with_errors(own: Elsewhere) -> None:
    """Somebody else's value under our name, as good as any other error."""
    key = own.key(requests_per_minute=1)
    counted_again(own)
    before = times_logged(own, b"requests_admitted_by_share")
    with redis.Redis.from_url(own.citadel.redis_url) as state:
        state.set("limits:workers", "not ours")
        async with own.asking() as client:
            said = [(await client.post(chat(own.model), key=key)).status for _ in range(2)]
            assert said == [200, 429], "all of the limit is the share of the only worker"
            await asyncio.sleep(1.2)
            assert times_logged(own, b"requests_admitted_by_share") == before + 1
            state.delete("limits:workers")
            counted_again(own)
            assert [(await client.post(chat(own.model), key=key)).status for _ in range(2)] == [200, 429]


async def test_a_worker_that_starts_meanwhile_does_not_know_how_the_servers_are(own: Elsewhere) -> None:
    """And calls none of them healthy that may be out."""

    async def told(client: Client) -> set[tuple[str, str]]:
        key = own.citadel.admin_key
        listed = (await client.get("/orchestration/servers/list", key=key)).json()["servers"][own.model]
        [shown] = (await client.get("/management/servers/status", key=key)).json()["data"]
        [row] = (await client.get("/health/enterprise", key=key)).json()["server_details"]
        return {(one["health_status"], one["health_reason"]) for one in (listed, shown, row)}

    async with own.asking() as client:
        with own.silent_redis():
            os.kill(own.citadel.worker, signal.SIGKILL)
            for _ in range(100):
                with suppress(aiohttp.ClientError):
                    if (await client.get("/health/live")).status == 200:
                        break
                await asyncio.sleep(0.2)
            assert await told(client) == {("degraded", "not_known")}
        for _ in range(50):
            if (known := await told(client)) == {("healthy", "")}:
                break
            await asyncio.sleep(0.2)
        assert known == {("healthy", "")}


async def test_a_failover_that_nobody_can_be_told_of_drains_no_server(own: Elsewhere) -> None:
    async with own.asking() as client:
        path, key = f"/orchestration/failover/{own.model}", own.citadel.admin_key
        with own.silent_redis():
            reply = await client.post({}, path, key=key)
        assert (reply.status, reply.code) == (503, "unavailable")
        assert f"{own.model}\tactive\t" in own.command("server", "list")


async def test_a_redis_that_refuses_us_is_left_alone(tmp_path: Path) -> None:
    """No connection is left behind by an attempt that failed."""
    open_connections = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            while await reader.read(1000):
                writer.write(b"-ERR DB index is out of range\r\n")
        finally:
            open_connections -= 1
            writer.close()

    server = await asyncio.start_unix_server(refuse, tmp_path / "redis")
    async with server:
        link = Redis(f"unix://{tmp_path / 'redis'}?db=1", timeout=1, connect_timeout=1, name="test")
        await link.start()
        await asyncio.sleep(0.5)
        assert not link.available
        assert open_connections <= 1
        await link.stop()
