"""All keys in force: a worker's own copy, and the database for one that was made or changed a moment ago."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import structlog
from psycopg import AsyncCursor
from psycopg.rows import TupleRow

from apps.gateway.access.keys.credentials import fingerprints, public_bytes
from apps.gateway.access.keys.holder import COLUMNS, TEAM_COLUMNS, UNBOUNDED, Bounds, Row, bounds, holder
from apps.gateway.access.keys.shape import Digester, is_id, well_formed
from citadel.caller import Caller
from citadel.database import Pool
from citadel.errors import Unauthenticated, Unavailable
from citadel.sections import ClientLimit

log = structlog.get_logger("citadel.keys")

UNKNOWN_FOR = 1.0
"""Seconds for which the database is not asked the same again: it knew nothing, or what it knew is in the table."""
UNKNOWN_KEPT = 10_000
MOST_ASKED = 200
"""Questions that wait for the database; who has one more is told at once that he can't be checked now."""
WITHIN = 5.0
"""Seconds that a look-up may take, its wait for others included."""
LOAD_WITHIN = 30.0
SLICE = 50
"""Rows that a load reads in one go: a millisecond or two, where none of them is known. Then others run."""
LOOK_UPS = 2
"""Of unknown keys at a time: strangers, who can make up as many as they like, leave connections to the others."""
INVALID = "The API key is not valid."

_SELECT = (
    "SELECT k.digest, k.former_digest, extract(epoch FROM k.former_until)::float8, "  # noqa: S608  # constants alone
    f"k.public_key, k.certificates, {COLUMNS} "
    "FROM gateway_key k JOIN gateway_team t ON t.id = k.team_id WHERE k.revoked IS NULL"
)
_TEAMS = f"SELECT {TEAM_COLUMNS} FROM gateway_team t"  # noqa: S608  # constants alone
_BY_DIGEST, _BY_ID = "%s IN (k.digest, k.former_digest)", "k.key_id = %s"
_BY_CERTIFICATE = "k.certificates ? %s"

Question = tuple[str, bytes | str]
"""Which keys the database is asked for: a condition, and the value in it."""


@dataclass(frozen=True, slots=True)
class Known:
    """A key in force: whom it makes, and what else than its secrets proves its holder."""

    holders: tuple[Caller, ...]
    """By the secret in force, then by the one before while that is good: each has its digest."""
    public_key: bytes | None
    """By the private one of which requests may be signed."""
    certificates: Sequence[str]
    """Their fingerprints."""
    row: Sequence[Any] = field(repr=False)
    """What the database says of it: as long as that is the same, so is the key."""

    @property
    def key_id(self) -> str:
        """Its public id."""
        return self.holders[0].key_id


class _InForce:
    """Keys, by all that one is found by."""

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}
        """By the digest of a secret."""
        self.keys: dict[str, Known] = {}
        """By public id."""
        self.certified: dict[str, Known | None] = {}
        """By the fingerprint of a certificate; None for one that several keys claim: it proves none of them."""

    def add(self, keys: Iterable[Known]) -> None:
        """These too."""
        for key in keys:
            self.keys[key.key_id] = key
            for caller in key.holders:
                self.callers[caller.digest] = caller
            for fingerprint in key.certificates:
                other = self.certified.get(fingerprint, key)
                is_its = other is not None and other.key_id == key.key_id
                self.certified[fingerprint] = key if is_its else None


class KeyTable:
    """All keys in force: a worker's own copy, replaced whole when the epoch moves."""

    def __init__(self, secret: str, defaults: ClientLimit, pool: Pool):
        self._digest = Digester(secret)
        self._defaults = defaults
        self._pool = pool
        self._in_force = _InForce()
        self._teams: Mapping[str, Bounds] = {}
        self._asked: dict[Question, float] = {}
        """Until when the same is not asked again."""
        self._asking: dict[Question, asyncio.Task[Sequence[Known]]] = {}
        self._few = asyncio.Semaphore(LOOK_UPS)
        self._loads = 0
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Reads every key in force, and what holds for teams. Others run meanwhile, and go by what was in force before.

        One after the other: of two at a time the older could end last, and bring back a key that was revoked since.
        """
        in_force = _InForce()
        teams: dict[str, Bounds] = {}
        async with asyncio.timeout(LOAD_WITHIN), self._loading:
            async with self._pool.connection() as connection:
                async for rows in _slices(await connection.execute(_SELECT)):
                    in_force.add(map(self._known_by, rows))
                async for rows in _slices(await connection.execute(_TEAMS)):
                    teams |= {slug: bounds(slug, *told) for slug, *told in rows}
            self._in_force, self._teams = in_force, teams
            self._loads += 1
            self._asked.clear()

    def find(self, key: bytes) -> Caller | None:
        """Who holds `key`; None where it is no key, or the table doesn't know it. Unauthenticated when it has ended."""
        if not well_formed(key):
            return None
        caller = self._in_force.callers.get(self._digest(key))
        if caller:
            _check_expiry(caller)
        return caller

    async def look_up(self, key: bytes) -> Caller:
        """Who holds `key`, by the database: one made a moment ago isn't in the table yet.

        Unauthenticated when nobody does, Unavailable when that can't be known at the moment.
        """
        if not well_formed(key):
            raise Unauthenticated(INVALID)
        return await self.of(self._digest(key))

    async def of(self, digest: bytes) -> Caller:
        """Who holds the key with that digest, by the table or the database; raises as `look_up`."""
        caller = self._in_force.callers.get(digest)
        if caller is None:
            holders = [one for key in await self._ask((_BY_DIGEST, digest)) for one in key.holders]
            caller = next((one for one in holders if one.digest == digest), None)
        if caller is None:
            raise Unauthenticated(INVALID)
        _check_expiry(caller)
        return caller

    def bounds_of(self, team: str) -> Bounds:
        """What holds for all of a team, whatever proves who asks; nothing for one that isn't there."""
        return self._teams.get(team, UNBOUNDED)

    def named(self, key_id: str) -> Known | None:
        """The key of that public id; None where the table knows no such key in force."""
        return self._in_force.keys.get(key_id)

    async def look_up_named(self, key_id: str) -> Known | None:
        """The same by the database, where it was made or changed a moment ago; None too where it has just been asked.
        Raises as `look_up`.
        """
        found = await self._ask((_BY_ID, key_id)) if is_id(key_id) else ()
        return found[0] if found else None

    async def certified(self, fingerprint: str) -> Caller | None:
        """Who holds the one key that a certificate with that fingerprint is tied to, by the table or the database; None
        where there is none. Raises as `look_up`.
        """
        key = self._in_force.certified.get(fingerprint)
        if key is None:
            found = await self._ask((_BY_CERTIFICATE, fingerprint))
            key = found[0] if len(found) == 1 else None
        return None if key is None or has_ended(key.holders[0]) else key.holders[0].without_digest()

    def digest(self, key: bytes) -> bytes:
        """What is kept of a key."""
        return self._digest(key)

    async def _ask(self, question: Question) -> Sequence[Known]:
        """One query for all who ask the same; nothing for who asks it again within a second."""
        if self._asked.get(question, 0.0) > time.monotonic():
            return ()
        task = self._asking.get(question)
        if task is None:
            if len(self._asking) >= MOST_ASKED:
                raise _unchecked()
            task = self._asking[question] = asyncio.create_task(self._query(question))
            task.add_done_callback(lambda done: self._answered(question, done))
        try:
            return await asyncio.shield(task)
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            log.warning("key_look_up_failed", reason=type(error).__name__)
            raise _unchecked() from None

    def _answered(self, question: Question, done: "asyncio.Task[Sequence[Known]]") -> None:
        del self._asking[question]
        if not done.cancelled():
            done.exception()  # which nobody hears of where all who asked have left

    async def _query(self, question: Question) -> Sequence[Known]:
        """What the database says now. Whoever asks goes by that, and not by the table: a load that began before the key
        was made may have replaced that. Neither is it learnt then: the key may be revoked by now.
        """
        before, (condition, value) = self._loads, question
        query = f"{_SELECT} AND {condition}"
        async with asyncio.timeout(WITHIN), self._few, self._pool.connection(timeout=2) as connection:
            rows = await (await connection.execute(query, (value,))).fetchall()
        found = list(map(self._known_by, rows))
        if found and self._loads != before:
            return found
        if len(self._asked) >= UNKNOWN_KEPT:
            self._asked.clear()
        self._asked[question] = time.monotonic() + UNKNOWN_FOR
        self._in_force.add(found)
        return found

    def _known_by(self, row: Sequence[Any]) -> Known:
        """The key of a row; the one that is known already where the database says nothing else of it."""
        digest, former, until, public_key, certificates, *held = row
        known = self._in_force.keys.get(held[0])
        if known and known.row == row:
            return known
        digests = [(digest, None)] if former is None or until is None else [(digest, None), (former, until)]
        holders = (holder(Row(*held), self._defaults, digest=bytes(one), until=ends) for one, ends in digests)
        return Known(tuple(holders), public_bytes(public_key), fingerprints(certificates), row)


def _unchecked() -> Unavailable:
    return Unavailable("Keys can't be checked at the moment.", code="auth_unavailable", retry_after=2)


def _check_expiry(caller: Caller) -> None:
    if has_ended(caller):
        raise Unauthenticated(INVALID)


def has_ended(caller: Caller) -> bool:
    """Whether its time is over."""
    return caller.expires is not None and caller.expires <= time.time()


async def _slices(answer: AsyncCursor[TupleRow]) -> AsyncIterator[Sequence[TupleRow]]:
    """The rows of an answer, some at a time; others run in between."""
    while rows := await answer.fetchmany(SLICE):
        yield rows
        await asyncio.sleep(0)
