"""Keeps a worker in step with the configuration: told by NOTIFY, and asking each second in case nobody told."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import structlog
from django.db import InterfaceError, OperationalError

from apps.orchestration.models.epoch import CHANNEL

log = structlog.get_logger("citadel.follow")

POLL = 1.0
RETRY = 1.0
CONNECT_TIMEOUT = 5
ANSWER_TIMEOUT = 5.0


async def follow(
    database_url: str,
    known: int,
    moved: Callable[[], Awaitable[int]],
    reached: Callable[[bool], object] = lambda _answers: None,
) -> None:
    """Calls `moved` whenever the epoch isn't `known` any more; it reloads and gives the epoch it has read. `reached` is
    told each time whether the database answers.

    Runs until it is cancelled, through any absence of the database.
    """
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                database_url, autocommit=True, connect_timeout=CONNECT_TIMEOUT, application_name="citadel-follow"
            ) as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                while True:
                    epoch = await _epoch(connection, reached)
                    reached(True)
                    if epoch != known:
                        known = await moved()
                    async for _ in connection.notifies(timeout=POLL, stop_after=1):
                        pass
        except (psycopg.Error, OperationalError, InterfaceError, OSError) as error:
            reached(False)
            log.warning("configuration_out_of_reach", reason=type(error).__name__)
        except Exception:  # the outermost edge of this task: if it ended, what is revoked would be valid for ever
            log.exception("configuration_not_loaded")
        await asyncio.sleep(RETRY)


async def _epoch(connection: psycopg.AsyncConnection, reached: Callable[[bool], object]) -> int:
    # Said by the clock: before psycopg lets a query go that is given up it tries for ten seconds to cancel it.
    silence = asyncio.get_running_loop().call_later(ANSWER_TIMEOUT, reached, False)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            row = await (await connection.execute("SELECT number FROM orchestration_epoch")).fetchone()
    finally:
        silence.cancel()
    return int(row[0]) if row else 0
