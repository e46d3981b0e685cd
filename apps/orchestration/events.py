"""What happens to the fleet, told once and kept: the only way in.

A trigger tells each row that is written by NOTIFY on `CHANNEL`, so whoever wants to know at once listens there.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from apps.orchestration.messages import Happening, Type
from apps.orchestration.models import Event
from citadel.database import Pool

log = structlog.get_logger("citadel.events")

CHANNEL = "citadel_events"
COLUMNS = "id, type, server_id, at, data"

_INSERT = "INSERT INTO orchestration_event (type, server_id, at, data) VALUES (%s, %s, now(), %s)"
# That one server's latest are looked at, since `in_turn` has nobody repeat what is older.
_INSERT_ONCE = (
    "INSERT INTO orchestration_event (type, server_id, at, data) SELECT %(type)s, %(server)s::text, now(), %(data)s "
    "WHERE %(data)s NOT IN "
    "(SELECT data FROM orchestration_event WHERE server_id = %(server)s::text ORDER BY id DESC LIMIT 500)"
)
# Who is stopped in his turn does not hold up all others.
_LIMIT = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
_TURN = "SELECT pg_advisory_xact_lock(%s)"
_TURNS = 0x43697445
"""The lock's number: an arbitrary one of ours."""
_PRUNE = (
    "DELETE FROM orchestration_event WHERE id IN "
    "(SELECT id FROM orchestration_event WHERE at < now() - make_interval(days => %s) ORDER BY at LIMIT %s)"
)
PRUNED_AT_ONCE = 10_000


class Kept(NamedTuple):
    """An event as it is kept: the row of `COLUMNS`."""

    id: int
    type: Type
    server_id: str
    at: datetime
    data: dict[str, Any] | None
    """None where it was too much to be read."""


async def tell(pool: Pool, server_id: str, *told: Happening) -> None:
    """Keeps what has happened to a server, in that order, all of it or nothing. Raises psycopg.Error."""
    async with pool.connection() as connection, connection.transaction():
        for one in told:
            await connection.execute(_INSERT, (one.event, server_id, Jsonb(msgspec.to_builtins(one))))
    for one in told:
        log.info(one.event, server=server_id, **_short(one))


@asynccontextmanager
async def in_turn(pool: Pool) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A transaction for the next two, of which all processes have one after the other. Raises psycopg.Error."""
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(_LIMIT)
        await connection.execute(_TURN, (_TURNS,))
        yield connection


async def tell_in_turn(connection: AsyncConnection[TupleRow], server_id: str, told: Happening) -> None:
    """Keeps what has happened to a server, though the same may have been kept before. Raises psycopg.Error."""
    await connection.execute(_INSERT, (told.event, server_id, Jsonb(msgspec.to_builtins(told))))
    log.info(told.event, server=server_id, **_short(told))


async def tell_once(connection: AsyncConnection[TupleRow], server_id: str, told: Happening) -> None:
    """The same, unless that has been kept lately. Raises psycopg.Error."""
    data = Jsonb(msgspec.to_builtins(told))
    done = await connection.execute(_INSERT_ONCE, {"type": told.event, "server": server_id, "data": data})
    if done.rowcount:
        log.info(told.event, server=server_id, **_short(told))


def tell_now(server_id: str, told: Happening) -> None:
    """The same from code that waits: the console, the command line, within their transaction. Its log is for who looks
    for trouble: on a command line it would stand between the command's own words.
    """
    data = msgspec.to_builtins(told)
    Event.objects.create(type=told.event, server_id=server_id, at=datetime.now(UTC), data=data)
    log.debug(told.event, server=server_id)


def _short(told: Happening) -> dict[str, Any]:
    """What of it a line of the log holds: no lists and tables."""
    found: dict[str, Any] = msgspec.to_builtins(told)
    return {name: value for name, value in found.items() if not isinstance(value, list | dict)}


async def prune(pool: Pool, days: int) -> None:
    """Drops events that are older, in pieces. Raises psycopg.Error."""
    async with pool.connection() as connection:
        while (await connection.execute(_PRUNE, (days, PRUNED_AT_ONCE))).rowcount == PRUNED_AT_ONCE:
            pass
