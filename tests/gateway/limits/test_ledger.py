"""What a worker tells of budgets, of which it knows what the last request that it has seen knew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from unittest.mock import patch

import pytest
from psycopg_pool import AsyncConnectionPool

from apps.gateway.limits.budgets import BILLION, Purse, purses
from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.workers import Workers
from apps.gateway.models import Budget, Key, Spend
from apps.orchestration.models import Event
from citadel.caller import Budget as Bounds
from citadel.redis import Redis
from citadel.sections import LimitsSection
from tests.gateway.limits.limiters import limiter_of
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.redis_database import redis_database

DATABASE = 3
PERIOD = "total"


@pytest.fixture
async def state(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, DATABASE) as state:
        yield state


@pytest.fixture
async def workers(citadel: Instance, state: Redis) -> AsyncIterator[list[Ledger]]:
    """Two of them."""
    async with AsyncConnectionPool(citadel.database_url, min_size=1, open=False) as pool:
        yield [Ledger(pool, state, Workers(2)) for _ in range(2)]


@pytest.fixture
async def row(citadel: Instance) -> Budget:
    """A key's budget of 100 tokens, of which 10 are spent."""
    return await asyncio.to_thread(_make, citadel)


def _make(citadel: Instance) -> Budget:
    key = Key.objects.get(key_id=citadel.key().split("_")[1])
    Spend.objects.create(holder=key.key_id, day=datetime.now(UTC).date(), requests=1, tokens=10, money=Decimal("0.001"))
    return Budget.objects.create(key=key, period=PERIOD, tokens=100)


def seen(row: Budget, day: date | None = None) -> tuple[Purse, ...]:
    """What a request that comes now asks for, or one that came on that day."""
    money = None if row.money is None else int(row.money * BILLION)
    return purses((Bounds(row.pk, row.holder, row.period, row.tokens, money),), day or datetime.now(UTC).date())


async def change(row: Budget, *, spent: int | None = None, **bounds: int | str | Decimal | None) -> None:
    for name, value in bounds.items():
        setattr(row, name, value)
    await asyncio.to_thread(row.save)
    if spent is not None:
        await asyncio.to_thread(Spend.objects.filter(holder=row.holder).update, tokens=spent)


async def told(row: Budget) -> list[tuple[str, int]]:
    """Units and shares, the oldest first."""
    found = Event.objects.filter(type="budget_warning", data__holder=row.holder).order_by("id")
    return await asyncio.to_thread(list, found.values_list("data__unit", "data__share"))


async def look(row: Budget, *workers: Ledger) -> list[tuple[str, int]]:
    """What has been told once these workers have seen a request each and looked."""
    for worker in workers:
        worker.look_after(seen(row))
    for worker in workers:
        await worker.look()
    return await told(row)


async def test_each_share_is_told_once_by_all_workers(workers: list[Ledger], row: Budget) -> None:
    assert await look(row, *workers) == []
    await change(row, spent=80)
    assert await look(row, *workers) == [("tokens", 80)]
    await change(row, spent=100)
    assert await look(row, *workers) == [("tokens", 80), ("tokens", 100)]
    await asyncio.gather(*(worker.look() for worker in workers))
    assert await told(row) == [("tokens", 80), ("tokens", 100)]


@pytest.mark.parametrize("period", ["day", "total"])
async def test_a_total_begins_on_no_day(workers: list[Ledger], row: Budget, period: str) -> None:
    first = None if period == "total" else datetime.now(UTC).date().isoformat()
    row.period = period
    await change(row, spent=80)
    await look(row, *workers)
    [event] = await asyncio.to_thread(list, Event.objects.filter(type="budget_warning", data__holder=row.holder))
    assert (event.data["period"], event.data["begins"]) == (period, first)


async def test_a_bound_of_money_is_another_one(workers: list[Ledger], row: Budget) -> None:
    await change(row, spent=100, money=Decimal("0.002"))
    before = [("tokens", 80), ("tokens", 100)]
    assert await look(row, *workers) == before
    await change(row, money=Decimal("0.001000001"))
    assert await look(row, *workers) == [*before, ("money", 80)]


async def test_a_higher_bound_is_another_one(workers: list[Ledger], row: Budget) -> None:
    await change(row, spent=100)
    before = await look(row, *workers)
    await change(row, tokens=1000)
    assert await look(row, *workers) == before
    await change(row, spent=800)
    assert await look(row, *workers) == [*before, ("tokens", 80)]
    await change(row, tokens=900)
    assert await look(row, *workers) == [*before, ("tokens", 80)], "that is known"
    await change(row, tokens=800)
    assert await look(row, *workers) == [*before, ("tokens", 80), ("tokens", 100)], "and this is new"
    for tokens in (100, 800, 790):
        await change(row, tokens=tokens)
        assert await look(row, *workers) == [*before, ("tokens", 80), ("tokens", 100)]


async def test_a_budget_of_nothing_that_is_raised(workers: list[Ledger], row: Budget) -> None:
    await change(row, tokens=0)
    before = [("tokens", 80), ("tokens", 100)]
    assert await look(row, *workers) == before
    await change(row, tokens=12)
    assert await look(row, *workers) == [*before, ("tokens", 80)]


async def test_a_bound_that_is_no_more_is_not_told_of(workers: list[Ledger], row: Budget) -> None:
    """By a worker that has seen no request since it was raised; it tells of the new one once it has."""
    fresh, stale = workers
    await look(row, fresh, stale)
    await change(row, spent=90, tokens=1000)
    await stale.look()
    assert await look(row, fresh) == []
    await change(row, spent=800)
    assert await look(row, stale) == [("tokens", 80)]


async def test_a_budget_that_was_made_anew_is_another_one(workers: list[Ledger], row: Budget) -> None:
    await change(row, spent=80)
    assert await look(row, *workers) == [("tokens", 80)]
    await asyncio.to_thread(row.delete)
    row.pk = None
    await asyncio.to_thread(row.save, force_insert=True)
    assert await look(row, *workers) == [("tokens", 80)] * 2


async def test_what_is_spent_after_a_period_is_none_of_its(workers: list[Ledger], row: Budget) -> None:
    """A worker looks after a purse for an hour, and into the next period with that."""
    await change(row, period="day", spent=100)
    today = await asyncio.to_thread(Spend.objects.get, holder=row.holder)
    workers[0].look_after(seen(row, today.day - timedelta(days=1)))
    await workers[0].look()
    assert await told(row) == []
    workers[0].look_after(seen(row, today.day))
    await workers[0].look()
    assert await told(row) == [("tokens", 80), ("tokens", 100)]


async def test_what_may_have_been_lost_on_its_way_is_looked_for(citadel: Instance, state: Redis) -> None:
    """Charges went along with a call whose fate is not known, though Redis was never seen to be away."""
    looks = asyncio.Event()
    with patch.object(Ledger, "look_soon", lambda _: looks.set()):
        async with limiter_of(citadel, state, DATABASE, LimitsSection(), workers=1) as limiter:
            limiter.start()
            await asyncio.sleep(1.0)
            assert not looks.is_set()
            limiter.doubt()
            await asyncio.wait_for(looks.wait(), 2.0 + HELD_UP)


async def test_charges_that_were_lost_are_made_up_for_once_they_are_written(
    workers: list[Ledger], row: Budget, state: Redis
) -> None:
    """Their records reach the database a moment after the worker began to doubt: the first look comes too soon."""
    [purse] = seen(row)
    await workers[0].tell([purse])
    keeping = asyncio.create_task(workers[0].keep_on())
    try:
        workers[0].look_soon()
        await asyncio.sleep(0.3)
        await change(row, spent=70)
        await asyncio.sleep(2.0 + HELD_UP)
        assert int(await state.call("GET", f"limits:spent:{purse.name}")) == 70
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
