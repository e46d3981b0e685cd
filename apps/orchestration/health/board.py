"""The board: what probes, traffic and heartbeats say of each server, in Redis, for all processes: docs/fleet.md."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import Load, Record, Source, Status, Untold
from apps.orchestration.health.evidence import Group
from apps.orchestration.health.pace import FASTEST, RATIO, REMEMBERED, WARM, Counts, Key
from apps.orchestration.health.scripts import script
from citadel.redis import Redis
from citadel.sections import HealthSection

T = TypeVar("T")

SAY, KEEP, TAKE_TRIAL, RELOCATE = script("say"), script("keep"), script("take_trial"), script("relocate")
COUNT_SILENCE, COUNT_FAILURE = script("count_silence"), script("count_failure")
COUNT_ANSWERS, FORGET = script("count_answers"), script("forget")
HEALTH, MOVED = "fleet:health", "fleet:moved"
FAILOVERS = "fleet:failover"
"""Hash of server → its mark, for those that are given up."""
SILENT = "fleet:silent"
"""Hash of server → how often requests have waited there in vain since the last good answer, and when (ms) last."""
PACES = "fleet:paces"
"""Hash of [model, server, streams] → p99 of the first byte, in seconds, once enough is known."""
ANSWERS = "fleet:answers"
"""Hash of [model, server, streams] → answers by the time that they took: bucket → count, of all workers."""
UNTOLD = "fleet:untold"
"""List of changes of which there is no event yet, the oldest first; at most 10,000, then the oldest go."""
UNTOLD_AT_ONCE = 100
SUSPECTS, SUSPECTED_FOR = "fleet:suspects", 60_000
"""Sorted set of requests that made servers fail, by their digests, by when (ms), and for how many ms that counts."""
FEW_SUSPECTS = 10
HEARTBEATS, OBSERVED = "fleet:heartbeats", "fleet:observed"
"""Hashes of server → load: as servers tell it by their heartbeats, and as probes find it."""
DEPARTED, EXCEEDED = "fleet:departed", "fleet:exceeded"
"""Sets: of servers that are silent, and of `SERVER FIGURE` that are above their bounds (`vigil.py`)."""
BEGUN = "fleet:begun"
"""How many workers have ever begun."""
PROBES = "fleet:probes"
"""Hash of server → when it is to be probed and asked (`schedule.py`)."""
FAILING = "fleet:failing"
"""Hash of server → requests of all workers that have failed there in a row."""
SILENCE = 1000
"""Milliseconds between two that count: by then each worker that gets answers has told so."""


TOLD_LOADS = 3
"""Times a load should have come anew after which an old one is believed no more."""


def load_lasts(health: HealthSection) -> float:
    """Seconds for which what is told of a server's load is believed."""
    return TOLD_LOADS * max(health.heartbeat_interval, health.interval)


class Change(NamedTuple):
    """What became of a server's status when somebody said something."""

    before: Status
    record: Record
    changed: bool


_record = msgspec.json.Decoder(Record)
_load = msgspec.json.Decoder(Load)
_untold = msgspec.json.Decoder(Untold)
_key = msgspec.json.Decoder(Key)


def _change(changed: int, before: bytes, record: bytes) -> Change:
    return Change(msgspec.convert(before.decode(), Status), _record.decode(record), bool(changed))


def _by_server(flat: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> dict[str, T]:
    """The reply of HGETALL with its values decoded."""
    return {name.decode(): decoder.decode(raw) for name, raw in zip(flat[::2], flat[1::2], strict=True)}


class Board:
    """This process's access to the board. All of it raises RedisError."""

    def __init__(self, redis: Redis, load_lasts: float):
        self._redis = redis
        self._load_lasts_ms = load_lasts * 1000
        self.telling = asyncio.Lock()
        """Held by who tells changes in this process."""

    @property
    def redis(self) -> Redis:
        """Where it hangs, for those who keep something beside it."""
        return self._redis

    async def say(
        self, server_id: str, source: Source, status: Status, reason: str = "", memory: Mapping[str, Any] | None = None
    ) -> Change:
        """Puts on the board what a source says of a server, and gives what follows. Whoever gets a change tells it.

        In `memory` no list may be empty: Redis's JSON does not tell it from an empty object.
        """
        kept = msgspec.json.encode(memory or {})
        told = await self._redis.script(SAY, [server_id, source, status, reason[:200], kept, "[]", -1])
        return _change(*told)

    async def conclude(
        self,
        record: Record,
        server_id: str,
        source: Source,
        status: Status,
        reason: str = "",
        memory: Mapping[str, Any] | None = None,
    ) -> Change | None:
        """As `say`, where it follows from what the source has said in `record`; None where it has said more since."""
        kept, turn = msgspec.json.encode(memory or {}), int(record.memory(source).get("turn", 0))
        told = await self._redis.script(SAY, [server_id, source, status, reason[:200], kept, "[]", turn])
        return None if told[0] == -1 else _change(*told)

    async def eject(self, server_id: str, reason: str, groups: Sequence[Group], since: int = 0) -> Change | None:
        """Puts on the board that traffic finds a server unhealthy; None where it has taken out enough of a group.
        `since`: when (ms) its first request began that waited there in vain.
        """
        memory = msgspec.json.encode({"failing_since": since} if since else {})
        known = msgspec.json.encode([[group.may_be_out, *group.servers] for group in groups])
        told = await self._redis.script(SAY, [server_id, "traffic", "unhealthy", reason[:200], memory, known, -1])
        return None if told[0] == -1 else _change(*told)

    async def known(self) -> set[str]:
        """The servers of which anything is kept beside their records."""
        hashes = (HEARTBEATS, OBSERVED, SILENT, FAILING, PROBES)
        kept = await asyncio.gather(*(self._redis.call("HKEYS", name) for name in hashes))
        of_paces = (_key.decode(key).server for key in await self._redis.call("HKEYS", ANSWERS))
        return {*(name.decode() for names in kept for name in names), *of_paces}

    async def begin(self) -> int:
        """A worker begins; how many have before it."""
        return int(await self._redis.call("INCR", BEGUN)) - 1

    async def number(self) -> int:
        """Another one whenever something has changed that is decided by."""
        return int(await self._redis.call("GET", MOVED) or 0)

    async def read(self) -> dict[str, Record]:
        """All of it."""
        return _by_server(await self._redis.call("HGETALL", HEALTH), _record)

    async def untold(self) -> dict[bytes, Untold]:
        """The oldest changes of which there is no event yet, by what stands for each in the list, in their order."""
        return {raw: _untold.decode(raw) for raw in await self._redis.call("LRANGE", UNTOLD, 0, UNTOLD_AT_ONCE - 1)}

    async def have_told(self, told: Iterable[bytes]) -> None:
        """There are events of these changes now."""
        for raw in told:
            await self._redis.call("LREM", UNTOLD, 1, raw)

    async def given_up(self) -> set[str]:
        """The servers whose failover has begun (`failover.py`)."""
        return {name.decode() for name in await self._redis.call("HKEYS", FAILOVERS)}

    async def look_up(self, server_id: str) -> Record:
        """One server's record."""
        raw = await self._redis.call("HGET", HEALTH, server_id)
        return _record.decode(raw) if raw else Record()

    async def take_trial(self, server_id: str, longest_ms: int) -> tuple[bool, int]:
        """Whether it is the caller's turn to try a server that is out, else the milliseconds until the next turn."""
        turn, left = await self._redis.script(TAKE_TRIAL, [server_id, longest_ms])
        return bool(turn), left

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
        now = await self.now()
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

    async def heartbeat(self, server_id: str, load: Load) -> None:
        """Keeps what a server says of its load, and that it lives."""
        await self._redis.script(KEEP, [HEARTBEATS, server_id, msgspec.json.encode(load)])

    async def observe(self, server_id: str, load: Load) -> None:
        """Keeps what a probe has found of a server's load."""
        await self._redis.script(KEEP, [OBSERVED, server_id, msgspec.json.encode(load)])

    async def heartbeats(self) -> dict[str, Load]:
        """The last heartbeat of each server that has ever sent one."""
        return _by_server(await self._redis.call("HGETALL", HEARTBEATS), _load)

    async def loads(self) -> dict[str, Load]:
        """The load of each server: what it says itself, completed by what probes have found."""
        observed = _by_server(await self._redis.call("HGETALL", OBSERVED), _load)
        told = await self.heartbeats()
        now = await self.now()
        observed, told = ({name: self._as_of(now, load) for name, load in some.items()} for some in (observed, told))
        return observed | {name: load.over(observed[name]) if name in observed else load for name, load in told.items()}

    def _as_of(self, now: int, load: Load) -> Load:
        """What is still believed of a load: of an old one only that it was told."""
        return load if abs(now - load.at) <= self._load_lasts_ms else Load(at=load.at)

    async def tell_answers(self, counts: Mapping[Key, Counts]) -> None:
        """Adds answers to those of all workers, by how long their first bytes took."""
        if counts:
            flat = [msgspec.json.encode(part) for key, counted in counts.items() for part in (key, counted)]
            bounds = (WARM, REMEMBERED, FASTEST, RATIO)
            await self._redis.script(COUNT_ANSWERS, [PACES, ANSWERS, *bounds, *flat])

    async def paces(self) -> dict[Key, float]:
        """The p99 that comes of that, in seconds, where there are enough."""
        flat = await self._redis.call("HGETALL", PACES)
        return {_key.decode(key): float(p99) for key, p99 in zip(flat[::2], flat[1::2], strict=True)}

    async def now(self) -> int:
        """Redis's clock, in milliseconds since the epoch."""
        seconds, microseconds = await self._redis.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def relocate(self, was: Server, now: Server) -> Change | None:
        """Forgets how a server was that has another address or is of another kind now. What becomes of its status, for
        the one who was first to say so.
        """
        moved = was.url != now.url
        first, before = await self._redis.script(RELOCATE, [now.server_id, now.url, now.kind, int(moved)])
        if not first:
            return None
        await self._forget_paces(now.server_id)
        status = msgspec.convert(before.decode(), Status)
        return Change(status, Record(reason="moved"), status != "healthy")

    async def forget(self, *server_ids: str) -> None:
        """Takes servers off that are no longer in the registry."""
        if server_ids:
            await self._redis.script(FORGET, list(server_ids))

    async def marked(self, marks: str) -> set[str]:
        """The names that have one of the marks."""
        return {name.decode() for name in await self._redis.call("SMEMBERS", marks)}

    async def _forget_paces(self, *server_ids: str) -> None:
        known = await self._redis.call("HKEYS", ANSWERS)
        gone = [key for key in known if _key.decode(key).server in server_ids]
        for name in (PACES, ANSWERS) if gone else ():
            await self._redis.call("HDEL", name, *gone)
