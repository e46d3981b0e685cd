"""A generous guard against floods of requests of one client, exact across workers."""

from citadel.errors import LimitExceeded
from citadel.redis import Redis, RedisError, Script

MOST = 600
"""Requests of one client in a minute, which begins with the first of them."""
MINUTE_MS = 60_000
_COUNT = Script("""
local count = redis.call('INCR', KEYS[1])
if count == 1 then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return {count, redis.call('PTTL', KEYS[1])}
""")


class Flood:
    """Counts requests. Without Redis all are let in: each costs a worker well under a millisecond."""

    def __init__(self, redis: Redis):
        self._redis = redis

    async def check(self, key_id: str) -> None:
        """LimitExceeded for one request too many of that key."""
        try:
            count, left_ms = await self._redis.script(_COUNT, (f"access:flood:{key_id}", MINUTE_MS), keys=1)
        except RedisError:
            return
        if count > MOST:
            raise LimitExceeded(
                f"This client sends more than {MOST} such requests a minute.", retry_after=left_ms / 1000
            )
