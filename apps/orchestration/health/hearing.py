"""Whether heartbeats can be heard: while no worker runs, or Redis is away, no server's silence is its own."""

import asyncio
import contextlib

from apps.orchestration.health.scripts import script
from citadel.background import Background
from citadel.redis import Redis, RedisError

HEAR = script("hear")
HEARING = "fleet:hearing"
"""Hash: `since` when (ms) there has always been a worker that hears heartbeats, and when one last said so (`at`)."""
SAY_EVERY = 1.0
"""Seconds, or a quarter of the heartbeats' interval where that is less."""


class Hearing:
    """One process's word that it hears, and what it knows of all. In a gap of less than `interval` seconds, the time
    between two heartbeats, a server loses one of them at most: that is none.
    """

    def __init__(self, redis: Redis, interval: float):
        self._redis = redis
        self._gap_ms = round(interval * 1000)
        self._pause = min(SAY_EVERY, interval / 4)
        self._background = Background("hearing")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Heartbeats can come to this process, which says so from now on."""
        self._task = self._background.begin(self._hear_on())

    def stop(self) -> None:
        """None comes any more."""
        if self._task:
            self._task.cancel()

    async def hear(self) -> None:
        """Says that heartbeats can be taken and kept at this moment. RedisError."""
        await self._redis.script(HEAR, [HEARING, self._gap_ms])

    async def heard_for(self, now: int) -> int:
        """Milliseconds up to `now` (Redis's) in which who spoke was heard; 0 where nobody hears now. RedisError."""
        since, at = (int(told or 0) for told in await self._redis.call("HMGET", HEARING, "since", "at"))
        return now - since if now - at <= self._gap_ms else 0

    async def _hear_on(self) -> None:
        while True:
            with contextlib.suppress(RedisError):
                await self.hear()
            await asyncio.sleep(self._pause)
