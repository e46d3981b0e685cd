"""The board: what probes, traffic and heartbeats say of each server, in Redis, for all processes: docs/fleet.md."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import Record, Source, Status, Untold
from apps.orchestration.health.evidence import Group
from apps.orchestration.health.hashes import by_server
from apps.orchestration.health.loads import HEARTBEATS, OBSERVED, REPORTED, ToldLoads
from apps.orchestration.health.moments import clock
from apps.orchestration.health.pace import FASTEST, RATIO, REMEMBERED, WARM, Counts, Key
from apps.orchestration.health.scripts import script
from apps.orchestration.health.troubles import FAILING, SILENT, Troubles
from apps.orchestration.health.window import WINDOW, Tally
from apps.orchestration.messages import Cause
from citadel.redis import Redis

SAY, TAKE_TRIAL, RELOCATE = script("say"), script("take_trial"), script("relocate")
COUNT_ANSWERS, COUNT_TALLIES = script("count_answers"), script("count_tallies")
FORGET, FORGET_PACES = script("forget"), script("forget_paces")
HEALTH, MOVED = "fleet:health", "fleet:moved"
FAILOVERS = "fleet:failover"
"""Hash of server → its mark, for those that are given up."""
PACES = "fleet:paces"
"""Hash of [model, server, streams] → p99 of the first byte, in seconds, once enough is known."""
ANSWERS = "fleet:answers"
"""Hash of [model, server, streams] → answers by the time that they took: bucket → count, of all workers."""
TALLIES = "fleet:tallies"
"""Hash of server → good and bad answers of late, of all workers, where any are bad (`count_tallies.lua`)."""
UNTOLD = "fleet:untold"
"""List of changes of which there is no event yet, the oldest first; at most 10,000, then the oldest go."""
UNTOLD_AT_ONCE = 100
DEPARTED, EXCEEDED = "fleet:departed", "fleet:exceeded"
"""Sets: of servers that are silent, and of `SERVER FIGURE` that are above their bounds (`vigil.py`)."""
BEGUN = "fleet:begun"
"""How many workers have ever begun."""
PROBES = "fleet:probes"
"""Hash of server → when it is to be probed and asked (`schedule.py`)."""


class Change(NamedTuple):
    """What became of a server's status when somebody said something."""

    before: Status
    record: Record
    changed: bool


class Mark(msgspec.Struct, frozen=True):
    """A server that has been given up. Times are Redis's milliseconds."""

    cause: Cause
    at: int
    told: bool = False
    """Whether its events are written."""
    claimed: int = 0
    """When somebody last set about to write them."""


_mark = msgspec.json.Decoder(Mark)
_record = msgspec.json.Decoder(Record)
_untold = msgspec.json.Decoder(Untold)
_key = msgspec.json.Decoder(Key)


def _change(changed: int, before: bytes, record: bytes) -> Change:
    return Change(msgspec.convert(before.decode(), Status), _record.decode(record), bool(changed))


class Board:
    """This process's access to the board. All of it raises RedisError."""

    def __init__(self, redis: Redis, load_lasts: float):
        self._redis = redis
        self.loads = ToldLoads(redis, load_lasts)
        """How much the servers have to do."""
        self.troubles = Troubles(redis)
        """Where requests wait in vain, or fail."""
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
        hashes = (HEARTBEATS, REPORTED, OBSERVED, SILENT, FAILING, PROBES)
        kept = await asyncio.gather(*(self._redis.call("HKEYS", name) for name in hashes))
        of_paces = (key.server for key in await self.measured())
        return {*(name.decode() for names in kept for name in names), *of_paces}

    async def measured(self) -> set[Key]:
        """Of which answers are kept: the models by the servers that have given them."""
        return {_key.decode(key) for key in await self._redis.call("HKEYS", ANSWERS)}

    async def begin(self) -> int:
        """A worker begins; how many have before it."""
        return int(await self._redis.call("INCR", BEGUN)) - 1

    async def number(self) -> int:
        """Another one whenever something has changed that is decided by."""
        return int(await self._redis.call("GET", MOVED) or 0)

    async def read(self) -> dict[str, Record]:
        """All of it."""
        return by_server(await self._redis.call("HGETALL", HEALTH), _record)

    async def untold(self) -> dict[bytes, Untold]:
        """The oldest changes of which there is no event yet, by what stands for each in the list, in their order."""
        return {raw: _untold.decode(raw) for raw in await self._redis.call("LRANGE", UNTOLD, 0, UNTOLD_AT_ONCE - 1)}

    async def have_told(self, told: Iterable[bytes]) -> None:
        """There are events of these changes now."""
        for raw in told:
            await self._redis.call("LREM", UNTOLD, 1, raw)

    async def given_up(self) -> dict[str, Mark]:
        """The servers whose failover has begun (`failover.py`)."""
        return by_server(await self._redis.call("HGETALL", FAILOVERS), _mark)

    async def look_up(self, server_id: str) -> Record:
        """One server's record."""
        raw = await self._redis.call("HGET", HEALTH, server_id)
        return _record.decode(raw) if raw else Record()

    async def take_trial(self, server_id: str, longest_ms: int) -> tuple[bool, int]:
        """Whether it is the caller's turn to try a server that is out, else the milliseconds until the next turn."""
        turn, left = await self._redis.script(TAKE_TRIAL, [server_id, longest_ms])
        return bool(turn), left

    async def tell_answers(self, counts: Mapping[Key, Counts]) -> None:
        """Adds answers to those of all workers, by how long their first bytes took."""
        if counts:
            flat = [msgspec.json.encode(part) for key, counted in counts.items() for part in (key, counted)]
            bounds = (WARM, REMEMBERED, FASTEST, RATIO)
            await self._redis.script(COUNT_ANSWERS, [PACES, ANSWERS, *bounds, *flat])

    async def tell_tallies(self, tallies: Mapping[str, Tally]) -> dict[str, Tally]:
        """Adds good and bad answers to those of all workers; gives what they come to in the last 15 to 30 seconds, of
        the servers that have bad ones.
        """
        flat = [part for server_id, tally in tallies.items() for part in (server_id, *tally)]
        told = await self._redis.script(COUNT_TALLIES, [int(WINDOW * 1000), *flat])
        servers, *counts = told[::3], told[1::3], told[2::3]
        return {name.decode(): Tally(good, bad) for name, good, bad in zip(servers, *counts, strict=True)}

    async def paces(self) -> dict[Key, float]:
        """The p99 that comes of that, in seconds, where there are enough."""
        flat = await self._redis.call("HGETALL", PACES)
        return {_key.decode(key): float(p99) for key, p99 in zip(flat[::2], flat[1::2], strict=True)}

    async def now(self) -> int:
        """Redis's clock, in milliseconds since the epoch."""
        return await clock(self._redis)

    async def relocate(self, was: Server, now: Server) -> Change | None:
        """Forgets how a server was that has another address or is of another kind now. What becomes of its status, for
        the one who was first to say so.
        """
        moved = was.url != now.url
        first, before = await self._redis.script(RELOCATE, [now.server_id, now.url, now.kind, int(moved)])
        if not first:
            return None
        await self.forget_paces({key for key in await self.measured() if key.server == now.server_id})
        status = msgspec.convert(before.decode(), Status)
        return Change(status, Record(reason="moved"), status != "healthy")

    async def forget(self, *server_ids: str) -> None:
        """Takes servers off that are no longer in the registry."""
        if server_ids:
            await self._redis.script(FORGET, list(server_ids))

    async def forget_paces(self, keys: Collection[Key]) -> None:
        """Drops answers, and the p99 that comes of them."""
        if keys:
            await self._redis.script(FORGET_PACES, [msgspec.json.encode(key) for key in keys])

    async def marked(self, marks: str) -> set[str]:
        """The names that have one of the marks."""
        return {name.decode() for name in await self._redis.call("SMEMBERS", marks)}
