"""Takes dead workers off what they held: that counts nowhere any more, but should not stand in Redis for hours."""

import asyncio

import structlog

from apps.gateway.limits.scripts import SWEEP
from citadel.redis import Redis, RedisRefused, RedisUnavailable

log = structlog.get_logger("citadel.limits")

EVERY = 0.5
"""Seconds."""


async def sweep_on(redis: Redis) -> None:
    """Looks again and again whether there are dead ones, until it is cancelled."""
    told = ""
    while True:
        try:
            await _sweep(redis)
            told = ""
        except RedisUnavailable:
            pass  # the heartbeat tells of that
        except RedisRefused as error:
            if str(error) != told:
                told = str(error)
                log.warning("sweep_refused", reason=told[:200])
        await asyncio.sleep(EVERY)


async def _sweep(redis: Redis) -> None:
    cursor, moment = b"0", 0
    while True:
        cursor, moment = await redis.script(SWEEP, (cursor, moment))
        if cursor == b"0":
            return
