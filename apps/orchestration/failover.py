"""Giving a server up: nothing new goes there, what waits for its first byte moves, and all are told who has its share.

An operator's failover drains the server and ends when it is enabled again. The automatic one begins when a server has
been unhealthy for a while and ends with its recovery. A mark on the board makes sure that each happens once, whoever
sees it first; web workers watch the marks and move the requests that they can.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import structlog

from apps.orchestration import events
from apps.orchestration.fleet import Fleet, Server
from apps.orchestration.health.board import Board, Mark
from apps.orchestration.health.conditions import AHEAD_MS, Record, Records
from apps.orchestration.messages import Cause, FailoverCompleted, FailoverInitiated, Rebalanced
from apps.orchestration.shares import concerned, rebalanced
from citadel.database import Pool
from citadel.redis import Script
from citadel.sections import Config

log = structlog.get_logger("citadel.failover")

CHANGE = Script((Path(__file__).parent / "failover.lua").read_text())
ENDED = "fleet:failover_ended"
"""Hash of server → when somebody last set about to tell that its failover has ended."""
PATIENCE_MS = 10_000
"""After so long a failover, or its end, that nobody has told of is told by another."""
TELL_WITHIN = 2.0
"""Seconds to tell of a failover in, where others wait for it."""
SETTLED_MS = 5_000
"""After so long every process knows that a server is draining: one that is active has been enabled since. It ends the
failover at once where Redis could be told (`glance.py`).
"""
MARGIN_MS = 2_000
"""Of the time for detection, for what is between its end and the failover's."""


class Situation(NamedTuple):
    """What a failover is decided by."""

    fleet: Fleet
    records: Records
    now: int
    """Redis's clock, in milliseconds."""


Tell = Callable[[], Awaitable[object]]
"""Writes the events of one failover, or its end."""


class Failovers:
    """The marks on the board, and what becomes of them. Raises RedisError."""

    def __init__(self, config: Config, board: Board, pool: Pool):
        self._delay_ms = config.failover.delay * 1000
        self._detection_ms = (config.failover.detection - config.health.connect_interval) * 1000 - MARGIN_MS
        self._board = board
        self._redis = board.redis
        self._pool = pool

    async def begin(self, server_id: str, cause: Cause, fleet: Fleet, records: Records) -> Mapping[str, Any] | None:
        """Gives a server up; None when it was given up already, else what became of its models.

        psycopg.Error when the events can't be written: then the next tick writes them.
        """
        if not await self._change("begin", server_id, cause):
            return None
        return await self._tell(server_id, cause, fleet, records)

    async def look(self, situation: Situation) -> None:
        """Begins and ends what is due, all of it before any is told: the database may be away. TimeoutError where it
        is; what could not be told is told by a later look.
        """
        for server_id, tell in await self._change_what_is_due(situation):
            try:
                async with asyncio.timeout(TELL_WITHIN):
                    await tell()
            except psycopg.Error as error:
                log.warning("failover_untold", server=server_id, reason=str(error) or type(error).__name__)

    async def _change_what_is_due(self, situation: Situation) -> list[tuple[str, Tell]]:
        """Begins and ends what is due; gives the servers of which somebody has to be told, and that."""
        fleet, records, now = situation
        marks, untold = await self._board.given_up(), list[tuple[str, Tell]]()
        for server_id in {*records, *marks}:
            mark, record = marks.get(server_id), records.get(server_id, Record())
            server = fleet.servers.get(server_id)
            if mark is None:
                is_due = server and server.state == "active" and self._is_overdue(record, now)
                if is_due and await self._change("begin", server_id, "automatic"):
                    untold.append((server_id, partial(self._tell, server_id, "automatic", fleet, records)))
            elif is_over(mark, record, server, now):
                await self._change("end", server_id)
            elif not mark.told and await self._change("claim", server_id, PATIENCE_MS):
                untold.append((server_id, partial(self._tell, server_id, mark.cause, fleet, records)))
        for server_id in [name.decode() for name in await self._redis.call("HKEYS", ENDED)]:
            server = fleet.servers.get(server_id)
            if server is None:
                await self._change("end told", server_id)
            elif server.state == "active" and await self._change("claim end", server_id, PATIENCE_MS):
                untold.append((server_id, partial(self._tell_end, server_id, situation)))
        return untold

    def _is_overdue(self, record: Record, now: int) -> bool:
        """Whether a server has been unhealthy for long enough, or without a good sign for too long."""
        if record.status != "unhealthy":
            return False
        finders = (record.memory("probe"), record.memory("traffic"))
        failing_since = [int(said.get("failing_since", 0)) for said in finders if said.get("status") == "unhealthy"]
        gone = any(since and _has_passed(since, self._detection_ms, now) for since in failing_since)
        return gone or _has_passed(record.since, self._delay_ms, now)

    async def outcome(self, server_id: str, fleet: Fleet, records: Records) -> dict[str, Any]:
        """What becomes of a server's models as things are: who has their shares, and which have nobody left."""
        away = _away(records, await self._board.given_up())
        taken_over = rebalanced(fleet, server_id, away, records)
        lost = sorted(name for name, left in taken_over.items() if not left)
        return {"models": len(concerned(fleet, server_id)), "shares": taken_over, "without_server": lost}

    async def _tell(self, server_id: str, cause: Cause, fleet: Fleet, records: Records) -> Mapping[str, Any]:
        """Writes the three events of a failover, all or none; gives what became of the server's models."""
        result = await self.outcome(server_id, fleet, records)
        reason = records.get(server_id, Record()).reason if cause == "automatic" else "operator"
        await events.tell(
            self._pool,
            server_id,
            FailoverInitiated(cause, reason),
            FailoverCompleted(cause, result["models"], result["without_server"]),
            Rebalanced("failover", result["shares"]),
        )
        await self._change("told", server_id)
        return result

    async def _tell_end(self, server_id: str, situation: Situation) -> None:
        away = _away(situation.records, await self._board.given_up())
        back = Rebalanced("recovery", rebalanced(situation.fleet, server_id, away, situation.records))
        await events.tell(self._pool, server_id, back)
        await self._change("end told", server_id)

    async def _change(self, what: str, server_id: str, more: str | int = "") -> bool:
        return bool(await self._redis.script(CHANGE, [what, server_id, more]))


def is_over(mark: Mark, record: Record, server: Server | None, now: int) -> bool:
    """Whether a failover ends: the automatic one with the recovery, the operator's when the server is enabled."""
    if server is None:
        return True
    if mark.cause == "automatic":
        return record.status != "unhealthy"
    return server.state == "active" and abs(now - mark.at) > SETTLED_MS  # ahead where the clock was set back


def _has_passed(since: int, milliseconds: float, now: int) -> bool:
    """Whether so long has gone by."""
    return now - since >= milliseconds or since > now + AHEAD_MS


def _away(records: Records, marks: Collection[str]) -> set[str]:
    """Who gets nothing now."""
    return {server_id for server_id, record in records.items() if record.status == "unhealthy"} | set(marks)
