"""Keeps a worker in step with the configuration: told by NOTIFY, and asking each second in case nobody told."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import structlog
from django.db import InterfaceError, OperationalError

from apps.orchestration.models.epoch import CHANNEL
from citadel.database import NOTICES_SILENCE
from citadel.logs import Trouble

Connection = psycopg.AsyncConnection[Any]

log = structlog.get_logger("citadel.follow")

POLL = 1.0
RETRY = 1.0
CONNECT_TIMEOUT = 5
ANSWER_TIMEOUT = 5.0


async def _nothing(_connection: Connection) -> None:
    pass


async def follow(
    database_url: str,
    known: int,
    moved: Callable[[], Awaitable[int]],
    reached: Callable[[bool], object] = lambda _answers: None,
    look: Callable[[Connection], Awaitable[None]] = _nothing,
) -> None:
    """Calls `moved` whenever the epoch isn't `known` any more; it reloads and gives the epoch it has read. `reached` is
    told each time whether the database answers. `look` gets the connection as often, for what changes too often to have
    all of the configuration read again: whoever changes it tells the same channel.

    Runs until it is cancelled, through any absence of the database.
    """
    absence = Trouble()
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                database_url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT,
                application_name="citadel-follow",
                **NOTICES_SILENCE,
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                while True:
                    with _silence_told(reached):
                        # Given up later than that is told: before psycopg lets a query go it tries for ten seconds to
                        # cancel it.
                        async with asyncio.timeout(ANSWER_TIMEOUT):
                            epoch = await _epoch(connection)
                            await look(connection)
                    reached(True)
                    absence.is_over()
                    if epoch != known:
                        with _silence_told(reached):
                            known = await moved()
                    async for _ in connection.notifies(timeout=POLL, stop_after=1):
                        pass
        except (psycopg.Error, OperationalError, InterfaceError, OSError) as error:
            reached(False)
            if absence.is_news():
                log.warning("configuration_out_of_reach", reason=type(error).__name__)
        except Exception:  # the outermost edge of this task: if it ended, what is revoked would be valid for ever
            log.exception("configuration_not_loaded")
        await asyncio.sleep(RETRY)


@contextmanager
def _silence_told(reached: Callable[[bool], object]) -> Iterator[None]:
    """Tells `reached` that the database does not answer when what is inside takes too long, while it still waits."""
    silence = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT, reached, False)
    try:
        yield
    finally:
        silence.cancel()


async def _epoch(connection: Connection) -> int:
    row = await (await connection.execute("SELECT number FROM orchestration_epoch")).fetchone()
    return int(row[0]) if row else 0
