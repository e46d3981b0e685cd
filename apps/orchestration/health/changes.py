"""Changes of a server's status become events: told by who brings one about, if the database is away by a later tick.

A change stands on the board as untold from the moment it is one, so neither an absence of the database nor the death of
a process loses it. It is taken off when its event is written; who finds it there all the same finds the event too.
"""

import asyncio

import psycopg
import structlog

from apps.orchestration import events
from apps.orchestration.health.board import Board, Change
from apps.orchestration.health.conditions import finder
from apps.orchestration.messages import HealthChanged
from citadel.database import Pool
from citadel.redis import RedisError

log = structlog.get_logger("citadel.changes")

WITHIN = 5.0
"""Seconds to tell something in; what takes longer is left to the next tick."""


async def tell_change(board: Board, pool: Pool, change: Change) -> None:
    """Raises `health_status_changed` where a status has changed; what is away now is only logged."""
    if not change.changed:
        return
    try:
        async with asyncio.timeout(WITHIN):
            await tell_changes(board, pool)
    except (RedisError, psycopg.Error, OSError, TimeoutError) as error:
        log.warning("event_waits", status=change.record.status, why=str(error) or type(error).__name__)


async def tell_changes(board: Board, pool: Pool) -> None:
    """Writes the events of all changes that are untold, in their order.

    RedisError or psycopg.Error: the rest stays untold.
    """
    async with board.telling:  # many changes at once must not take all of a worker's connections to the database
        while await board.untold():
            async with events.in_turn(pool) as connection:
                untold = await board.untold()
                for one in untold.values():
                    told = HealthChanged(one.before, one.status, finder(one.source), one.reason, one.at / 1000)
                    await events.tell_once(connection, one.server, told)
            await board.have_told(untold)
