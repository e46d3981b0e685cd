"""Requests that are let in to wait, and come to no place: it is as if they had never come."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from apps.gateway.limits.admission import Refused
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace, Place, Wanted
from apps.orchestration.fleet import Model
from citadel.caller import STRANGER, Caller, Limits
from citadel.redis import Redis
from citadel.sections import LimitsSection
from tests.gateway.limits.limiters import limiter_of
from tests.instance import Instance
from tests.redis_database import redis_database

DATABASE = 2
MODEL = Model("m", ())
KEY = Caller("key", "of two a minute", "", "client", None, limits=Limits(2, 0, 0))
LIMITS = LimitsSection.model_validate({"global": {"requests_per_minute": 1, "burst": 3}})


@pytest.fixture
async def state(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, DATABASE) as state:
        yield state


@pytest.fixture
async def limiter(citadel: Instance, state: Redis) -> AsyncIterator[Limiter]:
    """Of which all together may have three requests, where the only place has been taken by one."""
    async with limiter_of(citadel, state, DATABASE, LIMITS, 1) as limiter:
        await limiter.admit(STRANGER, MODEL, wanted(0))
        yield limiter


def wanted(patience: float, *, priority: int = 1, server: str = "s") -> Wanted:
    return Wanted("m", "t", priority, ((server, 1),), 2, patience, 0.0)


async def may_have_two(limiter: Limiter) -> bool:
    """Of its requests a minute all are left, and of those of all together what is left beside the first."""
    for server in ("x", "y"):
        await limiter.admit(KEY, MODEL, wanted(0, server=server))
    with pytest.raises(Refused) as refused:
        await limiter.admit(KEY, MODEL, wanted(0, server="z"))
    return refused.value.code == "rate_limit_exceeded"


async def waiting(limiter: Limiter, patience: float) -> list["asyncio.Task[object]"]:
    """Two requests, when they wait."""
    tasks = [asyncio.create_task(limiter.admit(KEY, MODEL, wanted(patience))) for _ in range(2)]
    await asyncio.sleep(0.1)
    return tasks


async def test_those_that_waited_for_too_long(limiter: Limiter) -> None:
    ended = await asyncio.gather(*await waiting(limiter, 0.3), return_exceptions=True)
    assert [one.code for one in ended if isinstance(one, NoPlace)] == ["queue_timeout"] * 2
    assert await may_have_two(limiter)


async def test_those_whose_client_left(limiter: Limiter) -> None:
    tasks = await waiting(limiter, 60.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await may_have_two(limiter)


async def test_those_whose_client_left_before_they_knew_that_they_wait(limiter: Limiter) -> None:
    tasks = [asyncio.create_task(limiter.admit(KEY, MODEL, wanted(60.0))) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert await may_have_two(limiter)


async def test_those_that_had_to_make_room(limiter: Limiter) -> None:
    tasks = await waiting(limiter, 60.0)
    better = [asyncio.create_task(limiter.find_place(wanted(60.0, priority=3))) for _ in range(2)]
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one.code for one in ended if isinstance(one, NoPlace)] == ["queue_full"] * 2
    assert await may_have_two(limiter)
    for task in better:
        task.cancel()
    await asyncio.gather(*better, return_exceptions=True)


async def test_not_one_that_gets_its_place(limiter: Limiter) -> None:
    first, second = await waiting(limiter, 60.0)
    limiter.leave(Place("s", held=True, limit=1))
    await first
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await limiter.admit(KEY, MODEL, wanted(0, server="x"))
    with pytest.raises(Refused):
        await limiter.admit(KEY, MODEL, wanted(0, server="y"))
