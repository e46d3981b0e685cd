"""When keys were last used: told to the database at most once a minute for each key."""

import asyncio
import time

import psycopg
import structlog

from citadel.database import Pool

log = structlog.get_logger("citadel.keys")

TELL_EVERY = 1.0
AGAIN_AFTER = 60.0
"""Seconds for which a use is not told again."""
WITHIN = 5.0
"""Seconds that the database may take for it."""
_WRITE = """
INSERT INTO gateway_keyuse AS known (key_id, last_used)
SELECT id, now() FROM gateway_key WHERE key_id = ANY(%s) ORDER BY id
ON CONFLICT (key_id) DO UPDATE SET last_used = excluded.last_used
WHERE known.last_used < excluded.last_used - interval '1 minute'
"""
"""In the order of the rows, so that two workers don't wait for each other."""


class KeyUses:
    """This worker's list of keys that were used and are still to be told of."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._lately: set[str] = set()
        self._untold: set[str] = set()
        self._forget_at = 0.0

    def note(self, key_id: str) -> None:
        """A key has proved who asks."""
        if key_id not in self._lately:
            self._lately.add(key_id)
            self._untold.add(key_id)

    async def tell_on(self) -> None:
        """Tells of new uses each second, until it is cancelled. What the database can't take now it gets later."""
        while True:
            await asyncio.sleep(TELL_EVERY)
            if time.monotonic() >= self._forget_at:
                self._lately.clear()
                self._forget_at = time.monotonic() + AGAIN_AFTER
            await self.tell()

    async def tell(self) -> None:
        """Writes what is still to be told."""
        told, self._untold = self._untold, set()
        if not told:
            return
        try:
            async with asyncio.timeout(WITHIN), self._pool.connection() as connection:
                await connection.execute(_WRITE, (sorted(told),))
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            self._untold |= told
            log.warning("key_uses_untold", reason=type(error).__name__)
