"""Budgets over four workers, and when some of them die."""

import asyncio
import os
import secrets
import signal
from datetime import UTC, datetime

import psycopg
import redis

from tests.faults.invariants import eventually, stores
from tests.gateway.fleet.conftest import Four
from tests.gateway.fleet.test_places import all_workers, connections
from tests.held_up import HELD_UP

NEEDED = 100
"""Tokens that a request of `ask` reserves for its answer, beside its prompt."""


def with_budget(four: Four, tokens: int) -> tuple[str, str]:
    """A key with a budget of a month, and its id."""
    key = four.elsewhere.key()
    key_id = key.split("_")[1]
    with psycopg.connect(four.citadel.database_url) as connection:
        connection.execute(
            "INSERT INTO gateway_budget (key_id, period, tokens, created) "
            "SELECT id, 'month', %s, now() FROM gateway_key WHERE key_id = %s",
            (tokens, key_id),
        )
    four.citadel.settle()
    return key, key_id


async def test_what_dead_workers_had_reserved_is_there_again(four: Four, model: str) -> None:
    server = four.server(model)
    server.behave("hang")
    key, key_id = with_budget(four, 10 * (NEEDED + 100))
    purse = f"{key_id}:month:{datetime.now(UTC).date().replace(day=1)}:tokens"
    reserved = f"limits:running:${purse}"
    with redis.Redis.from_url(stores(four.citadel)["REDIS_URL"]) as state:
        async with four.asking(key) as client:
            asked = [asyncio.create_task(client.chat(model, max_tokens=NEEDED)) for _ in range(8)]
            await asyncio.to_thread(eventually, lambda: sum(map(int, state.hvals(reserved))) < 8 * NEEDED)
            for worker, _ in connections(four).most_common(2):
                os.kill(worker, signal.SIGKILL)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            eventually(lambda: state.hgetall(reserved), within=5 + HELD_UP)
            server.behave()
            replies = await asyncio.gather(*(client.chat(model, max_tokens=NEEDED) for _ in range(8)))
        assert {reply.status for reply in replies} == {200}
        used = sum(reply.json()["usage"]["total_tokens"] for reply in replies)
        eventually(lambda: int(state.get(f"limits:spent:{purse}") or 0) != used, within=5)  # type: ignore[arg-type]
    await all_workers(four)


async def test_four_workers_spend_one_budget(four: Four, model: str) -> None:
    four.server(model, tokens=NEEDED)
    text = secrets.token_hex(8)
    async with four.asking() as client:
        [needs] = {reply.json()["usage"]["total_tokens"] for reply in [await client.chat(model, text)]}
    key, _ = with_budget(four, 50 * (needs + 100))
    async with four.asking(key) as client:
        replies = await asyncio.gather(*(client.chat(model, text, max_tokens=NEEDED) for _ in range(200)))
    let_in = [reply for reply in replies if reply.status == 200]
    assert {reply.code for reply in replies if reply.status != 200} == {"budget_exceeded"}
    assert sum(reply.json()["usage"]["total_tokens"] for reply in let_in) <= 50 * (needs + 100)
    assert len(let_in) >= 50
