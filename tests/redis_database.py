"""A database of a test's own in the run's Redis, empty before and after."""

import asyncio
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
    async with asyncio.timeout(30):  # on a busy machine the first attempt may be too slow
        while not redis.available:  # noqa: ASYNC110  # nobody tells when
            await asyncio.sleep(0.05)
    await redis.call("FLUSHDB")
    yield redis
    await redis.call("FLUSHDB")
    await redis.stop()
