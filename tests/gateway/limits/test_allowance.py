"""What all workers together may call beyond one for each request, on a real Redis."""

from collections.abc import AsyncIterator

import pytest

from apps.gateway.limits.allowance import SAVED, Allowance
from citadel.redis import Redis
from tests.instance import Instance
from tests.redis_database import redis_database

SHARE = 0.05
DATABASE = 5


@pytest.fixture
async def state(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, DATABASE) as redis:
        yield redis


async def spent(allowance: Allowance, purpose: str = "p", *, beyond: float = 0.0) -> int:
    count = 0
    while await allowance.spend(purpose, beyond=beyond):
        count += 1
    return count


async def test_calls_are_a_share_of_the_requests_from_the_first_on(state: Redis) -> None:
    """However the requests are spread over workers."""
    workers, extra = [Allowance(state, SHARE) for _ in range(4)], 0
    for number in range(1, 1201):
        workers[number % 4].earn("p")
        extra += await spent(workers[number // 7 % 4])
        assert extra <= SHARE * number
    assert extra > 0.85 * SHARE * 1200


async def test_what_one_worker_has_earned_another_may_spend_and_few_are_saved_up(state: Redis) -> None:
    earns, spends = Allowance(state, SHARE), Allowance(state, SHARE)
    for _ in range(1000):
        earns.earn("p")
    assert await spent(spends, "another") == 0
    assert await spent(spends, beyond=1) == SAVED - 1
    assert await spent(spends) == 1
    spends.give_back("p")
    assert await spent(earns) == 1


async def test_without_redis_nothing_is_spent_and_little_is_saved_up(state: Redis, citadel: Instance) -> None:
    away = Redis("redis://127.0.0.1:1/0", timeout=1, connect_timeout=1, name="away")
    allowance = Allowance(away, SHARE)
    for _ in range(1000):
        allowance.earn("p")
    assert not await allowance.spend("p")
    allowance._redis = state
    allowance.earn("p")
    assert await spent(allowance) == SAVED
