"""What a tick looks at besides the probes: who has departed and how long ago, who is given up, who is overloaded."""

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal

import psycopg
import structlog
from django.db import Error

from apps.audit.figures import by_server
from apps.orchestration import events, registry
from apps.orchestration.failover import Failovers, Situation
from apps.orchestration.fleet import Fleet
from apps.orchestration.health.board import DEPARTED, EXCEEDED, Board
from apps.orchestration.health.changes import tell_changes
from apps.orchestration.health.conditions import UNKNOWN, Loads, Record, Records
from apps.orchestration.health.hearing import Hearing
from apps.orchestration.health.pace import Key
from apps.orchestration.messages import Departed, Exceeded, Registered
from apps.orchestration.triggers import Figures, bounds, crossed, readings
from apps.orchestration.waiting import waiting
from citadel.database import Pool, in_thread
from citadel.redis import Redis, RedisError
from citadel.sections import Config

log = structlog.get_logger("citadel.vigil")

HEARD = "fleet:heard"
"""Sorted set of `SERVER FIGURE`, above their bounds, by when (ms) they were known last."""
TELL_WITHIN = 2.0
"""Seconds to tell something in; after `PATIENCE_MS` another does it, who then need not fear to tell it twice."""
PATIENCE_MS = 5000
MISSED_HEARTBEATS = 3
LOOK_AT_FIGURES = 15.0
COUNT_WITHIN = 5.0
"""Seconds to count requests in: while the database is away nothing else waits for it longer."""
LOOK_AT_QUEUES = 5.0
"""Seconds: with many teams that wait for many servers there is much to count."""
FIGURES_OF = 300.0
"""Seconds of requests that averages and shares are taken of."""
FORGOTTEN = 300.0
"""Seconds without a word of a figure after which it counts as well below its bound: the next trouble is a new one."""
TIDY = 60.0
FORGET_EVERY = 60.0
FORGOTTEN_AT_ONCE = 100
"""Servers that have departed long ago: each goes with its models and an event, all in one transaction."""
HOUR_MS = 3_600_000
PRUNE = 3600.0


class Vigil:
    """One process's. Whatever it finds is told once, however many processes look."""

    def __init__(self, config: Config, redis: Redis, board: Board, pool: Pool):
        self._config = config
        self._redis = redis
        self._board = board
        self._pool = pool
        self._failovers = Failovers(config, board, pool)
        self._bounds = bounds(config.scaling)
        self._hearing = Hearing(redis, config.health.heartbeat_interval)
        self._silence_ms = MISSED_HEARTBEATS * config.health.heartbeat_interval * 1000
        self._strangers: set[str] = set()
        self._unheld: set[Key] = set()

    async def keep(self, fleet: Fleet, records: Records, loads: Loads, now: int) -> None:
        """Looks once; what can't be done now is seen again at the next tick."""
        if not fleet.epoch:
            return  # nothing is known of the fleet yet
        for look in (
            partial(self._tell_changes),  # before what follows from them
            partial(self._look_for_departures, Situation(fleet, records, now)),
            partial(self._forget_departed, Situation(fleet, records, now)),
            partial(self._failovers.look, Situation(fleet, records, now)),
            partial(self._look_for_crossings, Situation(fleet, records, now), loads),
            partial(self._tidy, fleet, records),
        ):
            try:  # each by itself: while the database is away servers are given up all the same
                await look()
            except (RedisError, psycopg.Error, Error, OSError, TimeoutError) as error:
                log.warning(
                    "vigil_cut_short", look=look.func.__name__.strip("_"), reason=str(error) or type(error).__name__
                )

    async def _tell_changes(self) -> None:
        """What whoever brought it about could not tell."""
        async with asyncio.timeout(TELL_WITHIN):
            await tell_changes(self._board, self._pool)

    async def _look_for_departures(self, situation: Situation) -> None:
        """Says who has fallen silent and who speaks again, all of them before any is told: the database may be away."""
        fleet, records, now = situation
        departed, heard_ms = await self._board.marked(DEPARTED), await self._hearing.heard_for(now)
        untold: list[tuple[str, Literal["SADD", "SREM"], Departed | Registered]] = []
        for server_id, load in (await self._board.loads.heartbeats()).items():
            silent_ms = now - load.at
            is_silent = silent_ms > self._silence_ms
            is_out = records.get(server_id, Record()).memory("heartbeat").get("status") == "unhealthy"
            if server_id not in fleet.servers or is_silent == is_out == (server_id in departed):
                continue
            if not is_silent:
                if is_out:
                    await self._board.say(server_id, "heartbeat", "healthy")
                untold.append((server_id, "SREM", Registered(returned=True)))
            elif heard_ms > self._silence_ms:
                if not is_out:
                    await self._board.say(server_id, "heartbeat", "unhealthy", "departed")
                untold.append((server_id, "SADD", Departed("silent", silent_seconds=round(silent_ms / 1000))))
        for server_id, how, event in untold:
            async with self._mark(DEPARTED, server_id, how) as mine:
                if mine:
                    await tell_changes(self._board, self._pool)
                    await events.tell(self._pool, server_id, event)

    async def _forget_departed(self, situation: Situation) -> None:
        """Takes those out of the registry that have departed long ago, and could be heard since Citadel last began."""
        fleet, records, now = situation
        after = self._config.registry.forget_departed * HOUR_MS
        if not after or not await self._turn("forget", FORGET_EVERY):
            return
        if await self._hearing.heard_for(now) <= self._silence_ms:
            return
        departed, heartbeats = await self._board.marked(DEPARTED), await self._board.loads.heartbeats()
        gone = []
        for server_id in departed & fleet.servers.keys() & heartbeats.keys():
            said = records.get(server_id, Record()).memory("heartbeat")
            is_out = said.get("status") == "unhealthy" and now - heartbeats[server_id].at > self._silence_ms
            if is_out and now - said["at"] > after and fleet.servers[server_id].registered_by:
                gone.append(server_id)
        if gone:
            gone = await in_thread(registry.let_go, gone, "registry.forget_departed", FORGOTTEN_AT_ONCE)
            await self._board.forget(*gone)

    async def _look_for_crossings(self, situation: Situation, loads: Loads) -> None:
        figures: dict[str, Figures] = {}
        if await self._turn("figures", LOOK_AT_FIGURES):
            async with asyncio.timeout(COUNT_WITHIN):
                rows = await by_server(self._pool, FIGURES_OF)
            figures = {server_id: Figures(*row) for server_id, row in rows.items()}
        queues = await waiting(self._redis) if await self._turn("queues", LOOK_AT_QUEUES) else None
        exceeded, heard, crossings = await self._board.marked(EXCEEDED), set[str](), []
        for server_id, server in situation.fleet.servers.items():
            if server.state != "active":
                continue
            status = situation.records.get(server_id, Record()).status
            load, of_requests = loads.get(server_id, UNKNOWN), figures.get(server_id, Figures())
            now = readings(status, load, of_requests, None if queues is None else queues.get(server_id, 0))
            above = frozenset(figure for figure in self._bounds if f"{server_id} {figure}" in exceeded)
            risen, fallen = crossed(now, self._bounds, above)
            heard |= {f"{server_id} {figure}" for figure in (above | risen) & now.keys()}
            crossings.append((server_id, now, risen, fallen))
        await self._forget_unheard(heard, situation.now)
        for server_id, now, risen, fallen in crossings:
            for figure in sorted(risen):
                await self._exceed(server_id, figure, now[figure])
            for figure in fallen:
                await self._redis.call("SREM", EXCEEDED, f"{server_id} {figure}")

    async def _exceed(self, server_id: str, figure: str, value: float) -> None:
        async with self._mark(EXCEEDED, f"{server_id} {figure}", "SADD") as mine:
            if mine:
                await events.tell(self._pool, server_id, Exceeded(figure, round(value, 4), self._bounds[figure]))

    async def _forget_unheard(self, heard: Set[str], now: int) -> None:
        """Takes the marks of figures of which nothing was heard for long: with few requests an average is no figure,
        nor is old load, nor is there any of a server that is not active.
        """
        if heard:
            await self._redis.call("ZADD", HEARD, *[word for name in heard for word in (now, name)])
        for name in await self._redis.call("ZRANGE", HEARD, "-inf", now - round(FORGOTTEN * 1000), "BYSCORE"):
            await self._redis.call("SREM", EXCEEDED, name)
            await self._redis.call("ZREM", HEARD, name)

    @asynccontextmanager
    async def _mark(self, marks: str, name: str, how: Literal["SADD", "SREM"]) -> AsyncIterator[bool]:
        """Gives a name its mark, or takes it, after what is done then; yields whether it is on the caller to do it.
        Where that fails all stays as it was, and after `PATIENCE_MS` somebody does it again.
        """
        claim = f"fleet:claim:{marks}:{name}"
        if not await self._redis.call("SET", claim, 1, "NX", "PX", PATIENCE_MS):
            yield False
            return
        mine = bool(await self._redis.call("SISMEMBER", marks, name)) == (how == "SREM")
        async with asyncio.timeout(TELL_WITHIN):
            yield mine
        if mine:
            await self._redis.call(how, marks, name)
        await self._redis.call("DEL", claim)

    async def _tidy(self, fleet: Fleet, records: Records) -> None:
        """Drops what is known of servers that are twice not found in the registry, and of models on them: what has just
        come may not be in this process's snapshot yet. And events that are older than they need be.
        """
        if await self._turn("tidy", TIDY):
            strangers = {*records, *await self._board.known()} - fleet.servers.keys()
            gone, self._strangers = strangers & self._strangers, strangers
            await self._board.forget(*gone)
            await self._forget_paces(fleet)
        if await self._turn("prune", PRUNE):
            await events.prune(self._pool, self._config.events.retention_days)

    async def _forget_paces(self, fleet: Fleet) -> None:
        """Drops how fast servers were for models that have left them, as adapters do that are loaded for one job."""
        measured = await self._board.measured()
        holders = {model: fleet.holders(model) for model in {key.model for key in measured}}
        unheld = {key for key in measured if key.server not in holders[key.model]}
        gone, self._unheld = unheld & self._unheld, unheld
        await self._board.forget_paces(gone)

    async def _turn(self, name: str, every: float) -> bool:
        """Whether it is this process's turn to do what one process does `every` seconds."""
        return bool(await self._redis.call("SET", f"fleet:turn:{name}", 1, "NX", "PX", round(every * 1000)))
