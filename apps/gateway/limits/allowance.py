"""Calls beyond one for each request, of which all workers together may make a share: buckets in Redis, by purpose.

What each worker has earned it tells with every few requests, and waits for nothing. One that wants to spend asks: then
a server has been waited for longer than that takes. While Redis is away nothing is spent.
"""

from collections import defaultdict
from pathlib import Path

from citadel.redis import Redis, RedisError, Script

BUCKETS = "limits:allowances"
"""Hash of purpose → calls that may be made."""
SPEND = Script((Path(__file__).parent / "spend.lua").read_text())
SPENT = 0.9
"""Of the share: the rest is for what has been saved up before, so that some hundreds of requests keep to it, too."""
SAVED = 4.0
"""Calls that may be saved up."""
TOLD_FROM = 0.2
"""Earned calls from which on a worker tells of them."""


class Allowance:
    """This worker's side of the buckets: `share` is what requests may cost besides, by what they are for."""

    def __init__(self, redis: Redis, share: float):
        self.share = share
        self._redis = redis
        self._untold: defaultdict[str, float] = defaultdict(float)

    def earn(self, purpose: str) -> None:
        """A request has begun."""
        self._add(purpose, SPENT * self.share)

    def give_back(self, purpose: str) -> None:
        """A call was not made after all."""
        self._add(purpose, 1.0)

    async def spend(self, purpose: str, *, beyond: float = 0.0) -> bool:
        """Whether one more call may be made, and so many are left `beyond` it; then it counts as made."""
        try:
            return bool(await self._redis.script(SPEND, [BUCKETS, purpose, SAVED, 1 + beyond]))
        except RedisError:
            return False

    def _add(self, purpose: str, calls: float) -> None:
        untold = min(SAVED, self._untold[purpose] + calls)
        if untold >= TOLD_FROM and self._redis.available:
            self._redis.tell("HINCRBYFLOAT", BUCKETS, purpose, untold)
            untold = 0.0
        self._untold[purpose] = untold
