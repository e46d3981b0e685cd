"""The troubles that traffic has, on the board: where requests wait in vain or fail, and which are suspected of it."""

import asyncio

from apps.orchestration.health.moments import clock
from apps.orchestration.health.scripts import script
from citadel.redis import Redis

COUNT_SILENCE, COUNT_FAILURE = script("count_silence"), script("count_failure")
SILENT = "fleet:silent"
"""Hash of server → how often requests have waited there in vain since the last good answer, and when (ms) last."""
SILENCE = 1000
"""Milliseconds between two that count: by then each worker that gets answers has told so."""
FAILING = "fleet:failing"
"""Hash of server → requests of all workers that have failed there in a row."""
SUSPECTS, SUSPECTED_FOR = "fleet:suspects", 60_000
"""Sorted set of requests that made servers fail, by their digests, by when (ms), and for how many ms that counts."""
FEW_SUSPECTS = 10


class Troubles:
    """Those of all workers together. All of it raises RedisError."""

    def __init__(self, redis: Redis):
        self._redis = redis

    async def count_silence(self, server_id: str) -> int:
        """A request has waited in vain for a server; how often that has happened since the last good answer."""
        return int(await self._redis.script(COUNT_SILENCE, [SILENT, server_id, SILENCE]))

    async def silent(self) -> set[str]:
        """Where requests have waited in vain and none has been answered since."""
        return {name.decode() for name in await self._redis.call("HKEYS", SILENT)}

    async def count_failure(self, server_id: str) -> int:
        """A request has failed on a server; how many have in a row, in all workers."""
        return int(await self._redis.script(COUNT_FAILURE, [FAILING, server_id, 1]))

    async def forgive_failure(self, server_id: str) -> None:
        """One that was counted was the request's own doing."""
        await self._redis.script(COUNT_FAILURE, [FAILING, server_id, -1])

    async def failing(self) -> set[str]:
        """Where requests have failed and none has been answered since."""
        return {name.decode() for name in await self._redis.call("HKEYS", FAILING)}

    async def answers(self, server_id: str, *, whole: bool) -> None:
        """A server where requests waited in vain has answered one, or begun to; `whole`: where they failed, too."""
        troubles = (SILENT, FAILING) if whole else (SILENT,)
        await asyncio.gather(*(self._redis.call("HDEL", trouble, server_id) for trouble in troubles))

    async def suspect(self, request: bytes) -> None:
        """A request, by its digest, has made two servers fail."""
        now = await clock(self._redis)
        await self._redis.call("ZADD", SUSPECTS, now, request)
        await self._redis.call("ZREMRANGEBYSCORE", SUSPECTS, "-inf", now - SUSPECTED_FOR)
        await self._redis.call("PEXPIRE", SUSPECTS, SUSPECTED_FOR)  # each worker reads them four times a second

    async def absolve(self, request: bytes) -> None:
        """It has been answered after all."""
        await self._redis.call("ZREM", SUSPECTS, request)

    async def suspects(self) -> dict[bytes, float]:
        """Those of late, and since when (ms); more than a few say nothing, so the last few are enough."""
        flat = await self._redis.call("ZREVRANGE", SUSPECTS, 0, FEW_SUSPECTS, "WITHSCORES")
        return {digest: float(at) for digest, at in zip(flat[::2], flat[1::2], strict=True)}
