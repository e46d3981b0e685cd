"""All keys in force: a worker's own copy, and the database for one that was made a moment ago."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg
import structlog

from apps.gateway.access.keys.credentials import fingerprints, public_bytes
from apps.gateway.access.keys.holder import COLUMNS, TEAM_COLUMNS, UNBOUNDED, Bounds, Row, bounds, holder
from apps.gateway.access.keys.shape import Digester, well_formed
from citadel.caller import Caller
from citadel.database import Pool
from citadel.errors import Unauthenticated, Unavailable
from citadel.sections import ClientLimit

log = structlog.get_logger("citadel.keys")

UNKNOWN_FOR = 1.0
"""Seconds for which a key that the database doesn't know is refused without asking again."""
UNKNOWN_KEPT = 10_000
MOST_ASKED = 200
"""Unknown keys that wait to be looked up; one more is told at once that it can't be checked now."""
WITHIN = 5.0
"""Seconds that a look-up may take, its wait for others included."""
LOAD_WITHIN = 30.0
LOOK_UPS = 2
"""Of unknown keys at a time: strangers, who can make up as many as they like, leave connections to the others."""
INVALID = "The API key is not valid."

_SELECT = (
    "SELECT k.digest, k.former_digest, extract(epoch FROM k.former_until)::float8, "  # noqa: S608  # constants alone
    f"k.public_key, k.certificates, {COLUMNS} "
    "FROM gateway_key k JOIN gateway_team t ON t.id = k.team_id WHERE k.revoked IS NULL"
)
_TEAMS = f"SELECT {TEAM_COLUMNS} FROM gateway_team t"  # noqa: S608  # constants alone
_CERTIFICATES, _KEY_ID = 4, 5
"""Places in a row."""
_BY_DIGEST = f"{_SELECT} AND %s IN (k.digest, k.former_digest)"


class Signer(NamedTuple):
    """What the holder of a key signs by: secrets that belong to these digests, or the private key of a public one."""

    digests: tuple[bytes, ...]
    """Of the secret in force, and of the one before while that is good."""
    public_key: bytes | None


class KeyTable:
    """All keys in force, by digest: a worker's own copy, replaced whole when the epoch moves."""

    def __init__(self, secret: str, defaults: ClientLimit, pool: Pool):
        self._digest = Digester(secret)
        self._defaults = defaults
        self._pool = pool
        self._callers: Mapping[bytes, Caller] = {}
        self._teams: Mapping[str, Bounds] = {}
        self._signers: Mapping[str, Signer] = {}
        self._certified: Mapping[str, bytes | None] = {}
        """Digests by the fingerprint of a certificate; None for one that several keys claim."""
        self._unknown: dict[bytes, float] = {}
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._few = asyncio.Semaphore(LOOK_UPS)

    async def load(self) -> None:
        """Reads every key in force, and what holds for teams."""
        async with asyncio.timeout(LOAD_WITHIN), self._pool.connection() as connection:
            rows = await (await connection.execute(_SELECT)).fetchall()
            teams = await (await connection.execute(_TEAMS)).fetchall()
        self._teams = {slug: bounds(slug, *told) for slug, *told in teams}
        self._callers = {digest: caller for row in rows for digest, caller in self._callers_of(row)}
        self._signers = {row[_KEY_ID]: _signer(row) for row in rows}
        self._certified = _certified(rows)
        self._unknown.clear()

    def find(self, key: bytes) -> Caller | None:
        """Who holds `key`; None where it is no key, or the table doesn't know it. Unauthenticated when it has ended."""
        if not well_formed(key):
            return None
        caller = self._callers.get(self._digest(key))
        if caller:
            _check_expiry(caller)
        return caller

    async def look_up(self, key: bytes) -> Caller:
        """Who holds `key`, by the database: one made a moment ago isn't in the table yet.

        Unauthenticated when nobody does, Unavailable when that can't be known at the moment.
        """
        if not well_formed(key):
            raise Unauthenticated(INVALID)
        return _in_force(await self._ask(self._digest(key)))

    async def of(self, digest: bytes) -> Caller:
        """Who holds the key with that digest, by the table or the database; raises as `look_up`."""
        return _in_force(self._callers.get(digest) or await self._ask(digest))

    def bounds_of(self, team: str) -> Bounds:
        """What holds for all of a team, whatever proves who asks; nothing for one that isn't there."""
        return self._teams.get(team, UNBOUNDED)

    def known(self, digest: bytes) -> Caller | None:
        """Who holds the key with that digest, by the table alone; None where nobody does any more."""
        caller = self._callers.get(digest)
        return None if caller is None or _has_ended(caller) else caller

    def signer(self, key_id: str) -> Signer | None:
        """What requests in the name of a key are signed by; None where the table knows no such key in force."""
        return self._signers.get(key_id)

    def certified(self, fingerprint: str) -> Caller | None:
        """Who holds the one key that a certificate with that fingerprint is tied to; None where there is none."""
        digest = self._certified.get(fingerprint)
        caller = None if digest is None else self.known(digest)
        return caller and caller.without_digest()

    def digest(self, key: bytes) -> bytes:
        """What is kept of a key."""
        return self._digest(key)

    async def _ask(self, digested: bytes) -> Caller | None:
        """One query for all who ask, and a no is kept for a second."""
        if self._unknown.get(digested, 0.0) > time.monotonic():
            return None
        task = self._asking.get(digested)
        if task is None:
            if len(self._asking) >= MOST_ASKED:
                raise _unchecked()
            task = self._asking[digested] = asyncio.create_task(self._query(digested))
            task.add_done_callback(lambda done: self._asked(digested, done))
        try:
            return await asyncio.shield(task)
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            log.warning("key_look_up_failed", reason=type(error).__name__)
            raise _unchecked() from None

    def _asked(self, digested: bytes, done: "asyncio.Task[Caller | None]") -> None:
        del self._asking[digested]
        if not done.cancelled():
            done.exception()  # which nobody hears of where all who asked have left

    async def _query(self, digested: bytes) -> Caller | None:
        known = self._callers
        async with asyncio.timeout(WITHIN), self._few, self._pool.connection(timeout=2) as connection:
            row = await (await connection.execute(_BY_DIGEST, (digested,))).fetchone()
        if row:
            caller = dict(self._callers_of(row))[digested]
            if self._callers is known:  # a table read meanwhile knows better: the key may be revoked by now
                self._callers = {**known, digested: caller}
            return caller
        if len(self._unknown) >= UNKNOWN_KEPT:
            self._unknown.clear()
        self._unknown[digested] = time.monotonic() + UNKNOWN_FOR
        return None

    def _callers_of(self, row: Sequence[Any]) -> Iterator[tuple[bytes, Caller]]:
        """Who a key's secrets make, by digest: the one in force and, while it is good, the one before."""
        digest, former, until, _, _, *held = row
        digests = [(digest, None)] if former is None or until is None else [(digest, None), (former, until)]
        for one, ends in digests:
            yield bytes(one), holder(Row(*held), self._defaults, digest=bytes(one), until=ends)


def _unchecked() -> Unavailable:
    return Unavailable("Keys can't be checked at the moment.", code="auth_unavailable", retry_after=2)


def _in_force(caller: Caller | None) -> Caller:
    """Not out of the table: a load that began before the key was made may have replaced that."""
    if caller is None:
        raise Unauthenticated(INVALID)
    _check_expiry(caller)
    return caller


def _check_expiry(caller: Caller) -> None:
    if _has_ended(caller):
        raise Unauthenticated(INVALID)


def _has_ended(caller: Caller) -> bool:
    return caller.expires is not None and caller.expires <= time.time()


def _signer(row: Sequence[Any]) -> Signer:
    digest, former, _, public_key, *_ = row
    digests = (bytes(digest),) if former is None else (bytes(digest), bytes(former))
    return Signer(digests, public_bytes(public_key))


def _certified(rows: Sequence[Sequence[Any]]) -> dict[str, bytes | None]:
    """What is tied to two keys proves neither."""
    found: dict[str, bytes | None] = {}
    for row in rows:
        for fingerprint in fingerprints(row[_CERTIFICATES]):
            found[fingerprint] = None if fingerprint in found else bytes(row[0])
    return found
