"""Whose turn it is to be probed: kept in Redis, so that any number of probers and beats do each thing once."""

import asyncio
from collections.abc import Collection
from typing import NamedTuple

from apps.orchestration.health.board import PROBES
from apps.orchestration.health.scripts import script
from citadel.redis import Argument, Redis
from citadel.sections import Config

TAKE, RELEASE, LEARN_SOON = script("take_due"), script("release"), script("learn_soon")
TAKE_NOW, TAKEN, NO_NEED = script("take_now"), 1, 2
APART = 2.0
"""Seconds after the last probe began when one that is asked for may come, at most: so long does who asks wait."""
LOOK_EVERY = 0.1
"""Seconds between two looks whether a server that somebody else probes is free."""
LEASE_MARGIN = 3.0
"""Seconds that a lease is longer than a probe after a bare connection may take."""


class Turn(NamedTuple):
    """One tick, or one probe that was asked for, and what it has to do. `now` is Redis's clock, in milliseconds."""

    number: int
    now: int
    probes: tuple[str, ...] = ()
    connections: tuple[str, ...] = ()
    discoveries: tuple[str, ...] = ()


class Schedule:
    """The turns. All of it raises RedisError."""

    def __init__(self, redis: Redis, config: Config):
        self._redis = redis
        self._config = config.health
        self._models_ttl = config.cache.models_ttl
        self._lease = config.health.timeout + config.timeouts.server_connect + LEASE_MARGIN

    async def take(self, every: float, watched: Collection[str], suspects: Collection[str]) -> Turn | None:
        """Takes the tick of this moment, of which there is one `every` seconds; None when it is taken already.

        The servers in it are under a lease from now on. Those of `suspects` are probed at once.
        """
        health = self._config
        probes = (health.interval, health.fast_interval, health.connect_interval)
        periods = map(_milliseconds, (every, *probes, self._models_ttl, self._lease))
        arguments: list[Argument] = [*periods, len(suspects), *suspects, *watched]
        number, now, *found = await self._redis.script(TAKE, arguments)
        return Turn(number, now, *(_names(names) for names in found)) if number >= 0 else None

    async def take_now(self, server_id: str) -> Turn | None:
        """Takes a server for a probe that somebody asks for, once no other probes it and the next may come; None when
        another one has begun and ended in the meantime.
        """
        asked = 0
        while True:
            periods = map(_milliseconds, (min(APART, self._config.fast_interval), self._lease))
            found, now = await self._redis.script(TAKE_NOW, [server_id, *periods, asked])
            if found in (TAKEN, NO_NEED):
                return Turn(-now, now, (server_id,)) if found == TAKEN else None
            asked = asked or now
            await asyncio.sleep(LOOK_EVERY)

    async def release(self, server_id: str, turn: Turn, *, probe_in: float | None) -> None:
        """Ends a server's lease; `probe_in` seconds, where it is given, is when it is to be probed again."""
        wait = -1 if probe_in is None else _milliseconds(probe_in)
        connect = _milliseconds(self._config.connect_interval)
        await self._redis.script(RELEASE, [server_id, turn.number, wait, connect])


async def learn_soon(redis: Redis, server_id: str) -> None:
    """Has a server asked for its models with the next tick. RedisError."""
    await redis.script(LEARN_SOON, [PROBES, server_id])


def _names(raw: list[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in raw)


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
