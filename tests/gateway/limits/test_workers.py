"""Limits of several workers together, the limit of all clients, and what else must be one in two workers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.fleet.control import calls_of
from tests.gateway.client import Client, Reply, chat
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import running

BURST = 40
A_SECOND = 10
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": "2",
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": str(60 * A_SECOND),
    "CITADEL_LIMITS__GLOBAL__BURST": str(BURST),
}
CONNECTIONS = 60


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with running(tmp_path_factory.mktemp("two"), SETTINGS) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture(autouse=True)
def full_bucket(two_workers: Elsewhere) -> None:
    """As after a quiet while."""
    with redis.Redis.from_url(two_workers.citadel.redis_url) as state:
        state.delete("limits:global")


@pytest.fixture
async def client(two_workers: Elsewhere) -> AsyncIterator[Client]:
    """With so many open connections that each worker has some of them."""
    async with two_workers.asking() as client:
        for count in range(CONNECTIONS, 10 * CONNECTIONS, CONNECTIONS):
            await asyncio.gather(*(client.get("/health/live") for _ in range(count)))
            if all(_served_by(two_workers.citadel.home, number) for number in (1, 2)):
                break
        else:
            raise AssertionError("one worker takes all connections")
        yield client


def _served_by(home: Path, number: int) -> int:
    worker = psutil.Process(int((home / "run" / f"web-{number}.pid").read_text()))
    ours = {link.laddr.port for link in psutil.Process().net_connections("tcp4") if link.raddr}
    return sum(bool(link.raddr) and link.raddr.port in ours for link in worker.net_connections("tcp4"))


async def at_once(client: Client, model: str, key: str, count: int) -> list[Reply]:
    return list(await asyncio.gather(*(client.post(chat(model), key=key) for _ in range(count))))


async def test_n_a_minute_are_n_whichever_worker_they_meet(two_workers: Elsewhere, client: Client) -> None:
    replies = await at_once(client, two_workers.model, two_workers.key(requests_per_minute=20), CONNECTIONS)
    assert sorted(reply.status for reply in replies) == [200] * 20 + [429] * (CONNECTIONS - 20)
    assert {reply.code for reply in replies} == {"", "rate_limit_exceeded"}


async def test_n_at_once_are_n_whichever_worker_they_meet(two_workers: Elsewhere, client: Client) -> None:
    two_workers.server.clear()
    two_workers.server.behave("hang")
    key = two_workers.key(concurrent=3)
    tasks = [asyncio.create_task(client.post(chat(two_workers.model), key=key)) for _ in range(20)]
    try:
        while len(ended := [task for task in tasks if task.done()]) < 17:
            await asyncio.wait(set(tasks) - set(ended), return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().code for task in ended} == {"concurrency_limit_exceeded"}
        await two_workers.server.until(lambda log: len(calls_of(log)) == 3)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        two_workers.server.behave()


async def test_a_place_that_one_worker_frees_the_other_gives_away(two_workers: Elsewhere, client: Client) -> None:
    """One after the other on ever other connections: the answer to one lets the next in."""
    key = two_workers.key(concurrent=1)
    for _ in range(BURST // 2):
        assert (await client.post(chat(two_workers.model), key=key, connection="close")).status == 200


async def test_all_clients_together_have_a_burst_and_then_a_rate(two_workers: Elsewhere, client: Client) -> None:
    keys = [two_workers.key(), two_workers.unlimited]
    begun = time.monotonic()
    groups = await asyncio.gather(*(at_once(client, two_workers.model, key, 2 * BURST) for key in keys))
    took = time.monotonic() - begun
    replies = [reply for group in groups for reply in group]
    admitted = [reply for reply in replies if reply.status == 200]
    assert BURST <= len(admitted) <= BURST + took * A_SECOND + 1
    refused = [reply for reply in replies if reply.status == 429]
    assert len(refused) == len(replies) - len(admitted)
    assert {reply.code for reply in refused} == {"global_rate_limit_exceeded"}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert {reply.json()["error"]["type"] for reply in refused} == {"rate_limit_error"}


async def test_what_the_limit_of_all_refuses_costs_its_client_nothing(two_workers: Elsewhere, client: Client) -> None:
    limited = two_workers.key(requests_per_minute=30, concurrent=30)
    await at_once(client, two_workers.model, two_workers.unlimited, 2 * BURST)
    replies = await at_once(client, two_workers.model, limited, 20)
    refused = [reply for reply in replies if reply.status == 429]
    assert {reply.code for reply in refused} == {"global_rate_limit_exceeded"}
    with redis.Redis.from_url(two_workers.citadel.redis_url) as state:
        state.delete("limits:global")
    again = await at_once(client, two_workers.model, limited, 30)
    assert sum(reply.status == 200 for reply in (*replies, *again)) == 30


async def test_a_revoked_key_is_refused_by_every_worker_within_a_second(two_workers: Elsewhere, client: Client) -> None:
    key = two_workers.key()
    assert {reply.status for reply in await at_once(client, two_workers.model, key, CONNECTIONS)} <= {200, 429}
    two_workers.command("key", "revoke", key.split("_")[1])
    revoked = time.monotonic()
    while {reply.status for reply in await ask_for_models(client, key)} != {401}:
        assert time.monotonic() - revoked < 1 + HELD_UP


async def test_a_new_key_works_at_once_in_every_worker(two_workers: Elsewhere, client: Client) -> None:
    assert {reply.status for reply in await ask_for_models(client, two_workers.key())} == {200}


async def test_a_new_server_is_known_to_every_worker_within_a_second(two_workers: Elsewhere, client: Client) -> None:
    two_workers.command("server", "add", "second", two_workers.server.url, "--model", "brand-new")
    added = time.monotonic()
    while {len(reply.json()["data"]) for reply in await ask_for_models(client, two_workers.unlimited)} != {2}:
        assert time.monotonic() - added < 1 + HELD_UP
    two_workers.command("server", "remove", "second")


async def test_metrics_are_those_of_both_workers(two_workers: Elsewhere, client: Client) -> None:
    with Elsewhere.on(two_workers.citadel) as fresh:
        assert {reply.status for reply in await at_once(client, fresh.model, fresh.unlimited, 30)} == {200}
        line = f'ollama_requests_total{{model="{fresh.model}",outcome="ok",server="{fresh.model}"}} 30.0'
        deadline = time.monotonic() + 3 + HELD_UP
        while line not in (await client.get("/metrics", key=fresh.citadel.admin_key)).body.decode().splitlines():
            assert time.monotonic() < deadline, "not counted by both"
            await asyncio.sleep(0.05)


async def ask_for_models(client: Client, key: str) -> list[Reply]:
    return list(await asyncio.gather(*(client.get("/v1/models", key=key) for _ in range(CONNECTIONS))))
