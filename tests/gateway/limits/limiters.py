"""A worker's limiter in a database of a test's own, beside no Citadel that counts there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool

from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.workers import Workers
from citadel.redis import Redis
from citadel.sections import LimitsSection
from tests.instance import Instance
from tests.redis_database import redis_database


@asynccontextmanager
async def limiter_of(
    citadel: Instance, state: Redis, database: int, limits: LimitsSection, workers: int
) -> AsyncIterator[Limiter]:
    """That of one worker of so many, by these limits, which counts in `state`, the database of that number."""
    async with redis_database(citadel, database) as ear:
        ledger = Ledger(AsyncConnectionPool("", open=False), state, Workers(workers))  # of no budgets
        limiter = Limiter(state, ear, ledger, limits, Workers(workers))
        yield limiter
        await limiter.stop()
