"""Tokens of ours that were revoked before their end, as each worker knows them until some time after that.

A worker that revokes one writes it down and tells the channel of the epoch, so that the others look within
milliseconds, or at their poll each second. They read what is new and nothing else: revoking tokens, which every holder
of a key may do as often as he gets them, has nobody read the whole configuration.
"""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog

from apps.gateway.access.tokens.own import Claims
from apps.orchestration.models.epoch import CHANNEL
from citadel.database import Pool
from citadel.errors import Unavailable

log = structlog.get_logger("citadel.tokens")

MOST = 1000
"""Tokens of one key that are revoked and have not ended. Each worker holds these, and those that it still remembers."""
WITHIN = 5.0
"""Seconds that the database may take to write one down."""
FORGET_EVERY = 60.0
"""Seconds after which a worker looks again which of them have ended."""
FULL = (
    f"{MOST} tokens of this key are revoked already and have not ended. To end all of its tokens, rotate the key "
    "without grace."
)
LONGER = 1200
"""Seconds for which they are remembered after their end: that goes by Redis's clock, and forgetting by those of
PostgreSQL and the workers, which may be ahead of it."""
_LOCK = 7_009
"""PostgreSQL's number of the lock under which tokens are written down: without it one with a lower id could be seen
after one with a higher."""
_WRITE = """
INSERT INTO gateway_revokedtoken (jti, key_id, ends)
SELECT %(jti)s::text, %(key_id)s::text, %(ends)s::timestamptz
WHERE (
    SELECT count(*) FROM gateway_revokedtoken
    WHERE key_id = %(key_id)s::text AND ends > now() + make_interval(secs => %(longer)s)
) < %(most)s
ON CONFLICT (jti) DO NOTHING
"""
_READ = """
SELECT id, jti, extract(epoch FROM ends)::float8 FROM gateway_revokedtoken
WHERE id > %s AND ends > now() ORDER BY id
"""


class RevokedTokens:
    """This worker's list of them."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._ends: dict[str, float] = {}
        """Until when each is remembered, in seconds since the epoch."""
        self._last = 0
        """The highest id that was read."""
        self._forget_at = 0.0
        self._turn = asyncio.Lock()
        """One at a time is written down by each worker: the connections are for others too."""
        self._writing: set[asyncio.Task[None]] = set()

    def __contains__(self, jti: str) -> bool:
        return jti in self._ends

    async def load(self) -> None:
        """Reads what is new, by a connection of the pool."""
        async with self._pool.connection() as connection:
            await self.look(connection)

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Reads what is new, and forgets what has ended."""
        rows = await (await connection.execute(_READ, (self._last,))).fetchall()
        for number, jti, ends in rows:
            self._last = number
            self._ends[jti] = ends
        if time.monotonic() >= self._forget_at:
            now = time.time()
            self._ends = {jti: ends for jti, ends in self._ends.items() if ends > now}
            self._forget_at = time.monotonic() + FORGET_EVERY

    async def revoke(self, claims: Claims, key_id: str) -> None:
        """Has a token of the key refused, here at once and by the other workers within a second; Unavailable.

        It is done even if who asked for it does not wait for the end.
        """
        task = asyncio.create_task(self._write(claims, key_id))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        try:
            await asyncio.shield(task)
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            log.warning("token_not_revoked", reason=type(error).__name__)
            raise Unavailable("Tokens can't be revoked at the moment.", retry_after=2) from None

    async def stop(self) -> None:
        """Lets what is being written down be written."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, claims: Claims, key_id: str) -> None:
        ends = claims.exp + LONGER
        bounds = {"longer": LONGER, "most": MOST}
        row = {"jti": claims.jti, "key_id": key_id, "ends": datetime.fromtimestamp(ends, UTC), **bounds}
        async with asyncio.timeout(WITHIN), self._turn, self._pool.connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            await connection.execute("DELETE FROM gateway_revokedtoken WHERE ends <= now()")
            await connection.execute(_WRITE, row)
            found = await connection.execute("SELECT 1 FROM gateway_revokedtoken WHERE jti = %s", (claims.jti,))
            if await found.fetchone() is None:
                raise Unavailable(FULL, code="too_many_revoked", retry_after=60)
            await connection.execute("SELECT pg_notify(%s, '')", (CHANNEL,))
        self._ends[claims.jti] = ends
