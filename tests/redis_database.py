"""A database of a test's own in the run's Redis, empty before and after."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from citadel.redis import Redis
from tests.instance import Instance


@asynccontextmanager
async def redis_database(citadel: Instance, number: int) -> AsyncIterator[Redis]:
    """The database of this number, which no other test that may run at the same time has."""
    url = re.sub(r"db=\d+", f"db={number}", citadel.redis_url)
    assert number and f"db={number}" in url, "the running Citadel's own data would be lost"
    redis = Redis(url, timeout=5, connect_timeout=5, name="test")
    await redis.start()
    await redis.call("FLUSHDB")
    yield redis
    await redis.call("FLUSHDB")
    await redis.stop()
