"""The servers' load on the board: as they tell it, and as probes find it."""

from collections.abc import Iterator, Mapping

import msgspec

from apps.orchestration.health.conditions import UNKNOWN, Load
from apps.orchestration.health.hashes import by_server
from apps.orchestration.health.moments import clock
from apps.orchestration.health.scripts import script
from citadel.redis import Redis
from citadel.sections import HealthSection

KEEP = script("keep")
HEARTBEATS, REPORTED, OBSERVED = "fleet:heartbeats", "fleet:reported", "fleet:observed"
"""Hashes of server → load: as servers tell it by their heartbeats, as webhooks do, and as probes find it."""
TOLD_LOADS = 3
"""Times a load should have come anew after which an old one is believed no more."""

_load = msgspec.json.Decoder(Load)


def load_lasts(health: HealthSection) -> float:
    """Seconds for which what is told of a server's load is believed."""
    return TOLD_LOADS * max(health.heartbeat_interval, health.interval)


class ToldLoads:
    """What is told of them, and for how many seconds that is believed. All of it raises RedisError."""

    def __init__(self, redis: Redis, lasts: float):
        self._redis = redis
        self._lasts_ms = lasts * 1000

    async def heartbeat(self, server_id: str, load: Load) -> None:
        """Keeps what a server says of its load, and that it lives."""
        await self._redis.script(KEEP, [HEARTBEATS, server_id, msgspec.json.encode(load)])

    async def renew(self, server_id: str) -> None:
        """Has a server live that has sent heartbeats before: it has registered again, and says nothing of its load."""
        if await self._redis.call("HEXISTS", HEARTBEATS, server_id):
            await self.heartbeat(server_id, Load())

    async def observe(self, server_id: str, load: Load) -> None:
        """Keeps what a probe has found of a server's load."""
        await self._redis.script(KEEP, [OBSERVED, server_id, msgspec.json.encode(load)])

    async def observe_model(self, server_id: str, model: str) -> None:
        """Keeps that a server has a model in memory by now, beside what a probe has found, as long as that is believed;
        the next probe tells all anew.
        """
        found = await self._redis.call("HGET", OBSERVED, server_id)
        load, now = _load.decode(found) if found else UNKNOWN, await clock(self._redis)
        if not self._is_fresh(now, load):
            await self.observe(server_id, Load(models=(model,)))
            return
        load = msgspec.structs.replace(load, models=tuple(sorted({*(load.models or ()), model})))
        await self._redis.call("HSET", OBSERVED, server_id, msgspec.json.encode(load))

    async def report(self, server_id: str, load: Load) -> None:
        """Keeps what a webhook tells of a server's load."""
        await self._redis.script(KEEP, [REPORTED, server_id, msgspec.json.encode(load)])

    async def heartbeats(self) -> dict[str, Load]:
        """The last heartbeat of each server that has ever sent one."""
        return by_server(await self._redis.call("HGETALL", HEARTBEATS), _load)

    async def read(self) -> dict[str, Load]:
        """The load of each server: what it says itself, completed by what webhooks tell and by what probes find."""
        observed = by_server(await self._redis.call("HGETALL", OBSERVED), _load)
        reported = by_server(await self._redis.call("HGETALL", REPORTED), _load)
        told = await self.heartbeats()
        now = await clock(self._redis)
        known = {name: self._as_of(now, load) for name, load in observed.items()}
        for name, load in [*self._fresh(now, reported), *told.items()]:
            believed = self._as_of(now, load)
            known[name] = believed.over(known[name]) if name in known else believed
        return known

    def _fresh(self, now: int, loads: Mapping[str, Load]) -> Iterator[tuple[str, Load]]:
        """Those that are still believed: of who has told of a server's load nobody expects to hear again."""
        return ((name, load) for name, load in loads.items() if self._is_fresh(now, load))

    def _as_of(self, now: int, load: Load) -> Load:
        """What is still believed of a load: of an old one only that it was told."""
        return load if self._is_fresh(now, load) else Load(at=load.at)

    def _is_fresh(self, now: int, load: Load) -> bool:
        return abs(now - load.at) <= self._lasts_ms
