"""Budgets while Redis is away: a worker goes by what PostgreSQL has said, and by its share of what is left of it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg_pool import AsyncConnectionPool

from apps.gateway.limits.admission import Admission, Overspent
from apps.gateway.limits.budgets import BILLION, Claim, Purse, purses
from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace, Wanted
from apps.gateway.limits.workers import Workers
from apps.gateway.models import Spend
from apps.orchestration.fleet import Model
from citadel.caller import STRANGER, Budget
from citadel.database import Pool
from citadel.errors import Unavailable
from citadel.redis import Redis, RedisError
from citadel.sections import LimitsSection
from tests.instance import Instance

MODEL = Model("m", ())
LIMITS = LimitsSection.model_validate({"global": {"requests_per_minute": 0}})
COUNT = 4
"""Workers that share what is left."""
SPENT, LEFT = 20, 80
"""Tokens of the budget, of which each worker's share is 20."""


@dataclass
class Worker:
    """One of them, which has never reached Redis."""

    limiter: Limiter
    ledger: Ledger

    async def admit(self, claims: Sequence[Claim], wanted: Wanted | None = None) -> Admission:
        return await self.limiter.admit(STRANGER, MODEL, wanted, claims=claims)

    async def refuses(self, *claims: Claim) -> bool:
        """Whether there isn't enough; where there is, nothing is taken."""
        return await self.ledger.refusing(claims, self.limiter._tally.running) is not None

    def end(self, admission: Admission) -> None:
        self.limiter.settle(admission.question, 0)
        self.limiter.release(admission)

    async def look(self) -> None:
        """Reads what has been spent, which Redis can't be told."""
        with pytest.raises(RedisError):
            await self.ledger.look()


@asynccontextmanager
async def worker_with(pool: Pool, folder: Path) -> AsyncIterator[Worker]:
    away = Redis(f"unix://{folder / 'nobody'}", timeout=1, connect_timeout=1, name="away")
    workers = Workers(COUNT)
    ledger = Ledger(pool, away, workers)
    limiter = Limiter(away, away, ledger, LIMITS, workers)
    yield Worker(limiter, ledger)
    await limiter.stop()


@pytest.fixture
async def pool(citadel: Instance) -> AsyncIterator[Pool]:
    async with AsyncConnectionPool(citadel.database_url, min_size=1, open=False) as pool:
        yield pool


@pytest.fixture
async def worker(pool: Pool, tmp_path: Path) -> AsyncIterator[Worker]:
    async with worker_with(pool, tmp_path) as worker:
        yield worker


@pytest.fixture
async def purse(citadel: Instance) -> Purse:
    """Of tokens, of a key that has spent some."""
    return (await asyncio.to_thread(_make, None))[0]


def _make(money: int | None) -> tuple[Purse, ...]:
    """Of tokens, and of so many billionths of money where that is bound, of which 1 is spent."""
    holder, today = secrets.token_hex(5), datetime.now(UTC).date()
    Spend.objects.create(holder=holder, day=today, requests=1, tokens=SPENT, money=Decimal(1))
    return purses((Budget(1, holder, "total", SPENT + LEFT, money),), today)


async def spend(purse: Purse, tokens: int) -> None:
    """PostgreSQL knows that so many are spent by now."""
    await asyncio.to_thread(Spend.objects.filter(holder=purse.budget.holder).update, tokens=tokens)


async def test_each_has_its_share_of_what_is_left(worker: Worker, purse: Purse) -> None:
    first = await worker.admit([Claim(purse, 15)])
    await worker.admit([Claim(purse, 5)])
    with pytest.raises(Overspent) as refused:
        await worker.admit([Claim(purse, 1)])
    assert (refused.value.code, refused.value.claim.purse) == ("budget_exceeded", purse)
    worker.end(first)
    assert not await worker.refuses(Claim(purse, 15)), "what was refused has claimed nothing"
    assert await worker.refuses(Claim(purse, 16))


async def test_one_request_of_each_may_have_all_of_it(worker: Worker, pool: Pool, purse: Purse, tmp_path: Path) -> None:
    async with worker_with(pool, tmp_path) as other:
        for one in (worker, other):
            assert await one.refuses(Claim(purse, LEFT + 1))
            admission = await one.admit([Claim(purse, LEFT)])
            assert await one.refuses(Claim(purse, 1))
            one.end(admission)
            assert not await one.refuses(Claim(purse, LEFT)), "it has used nothing"


async def test_what_it_charges_is_of_its_share_until_postgresql_knows(
    worker: Worker, purse: Purse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.gateway.limits.ledger.WRITTEN_WITHIN", 0.0)
    admission = await worker.admit([Claim(purse, 15)])
    worker.limiter.charge(purse, 10)
    worker.end(admission)
    assert not await worker.refuses(Claim(purse, 10))
    assert await worker.refuses(Claim(purse, 11))
    await spend(purse, SPENT + 10)
    await worker.look()
    assert not await worker.refuses(Claim(purse, LEFT - 10)), "alone it may have what is left"
    assert await worker.refuses(Claim(purse, LEFT - 9))


async def test_what_it_has_just_charged_counts_though_postgresql_is_asked_before_it_is_written(
    worker: Worker, purse: Purse, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = await worker.admit([Claim(purse, LEFT)])
    worker.limiter.charge(purse, LEFT)
    worker.end(admission)
    await worker.look()
    assert await worker.refuses(Claim(purse, 1))
    await spend(purse, SPENT + LEFT)
    monkeypatch.setattr("apps.gateway.limits.ledger.WRITTEN_WITHIN", 0.0)
    await worker.look()
    assert not await worker.refuses(Claim(purse, 0)), "it counts once"


async def test_what_others_spend_counts_when_postgresql_tells(worker: Worker, purse: Purse) -> None:
    assert not await worker.refuses(Claim(purse, 10))
    await spend(purse, SPENT + LEFT - 9)
    assert not await worker.refuses(Claim(purse, 10)), "it is not asked for each request"
    await worker.look()
    assert await worker.refuses(Claim(purse, 10))
    assert not await worker.refuses(Claim(purse, 9))
    await spend(purse, SPENT + LEFT + 1)
    await worker.look()
    assert await worker.refuses(Claim(purse, 0)), "more is spent than there was"


async def test_the_purse_that_has_not_enough_is_named(worker: Worker) -> None:
    tokens, money = await asyncio.to_thread(_make, 3 * BILLION)
    await worker.admit([Claim(tokens, 5), Claim(money, 2 * BILLION)])
    for claims in ([Claim(tokens, 5), Claim(money, 1)], [Claim(tokens, 16)]):
        with pytest.raises(Overspent) as refused:
            await worker.admit(claims)
        assert refused.value.claim.purse == claims[-1].purse
    await worker.admit([Claim(tokens, 15)])


async def test_what_finds_no_place_has_claimed_nothing(worker: Worker, purse: Purse) -> None:
    wanted = Wanted("m", "t", 1, (("s", 1),), 2, 0.0, 0.0)
    await worker.admit([Claim(purse, 5)], wanted)
    with pytest.raises(NoPlace):
        await worker.admit([Claim(purse, 15)], wanted)
    await worker.admit([Claim(purse, 15)])


async def test_a_purse_that_neither_knows_is_refused(worker: Worker, pool: Pool, purse: Purse) -> None:
    """Where PostgreSQL is away too; of others it goes on by what that has said."""
    await worker.admit([Claim(purse, 5)])
    [unknown] = await asyncio.to_thread(_make, None)
    await pool.close()
    await worker.admit([Claim(purse, 15)])
    with pytest.raises(Unavailable) as refused:
        await worker.admit([Claim(purse, 0), Claim(unknown, 1)])
    assert (refused.value.status, refused.value.code) == (503, "budget_unavailable")
    with pytest.raises(Overspent):
        await worker.admit([Claim(purse, 1)])
