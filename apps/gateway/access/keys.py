"""API keys: `ctd_` + ten characters of public id + `_` + 33 of secret (196 bits) + six of checksum.

The checksum is verified before anything is looked up, so that noise costs nothing. What is looked up is a keyed
BLAKE2b (RFC 7693) of the whole key under this installation's secret: a stolen table opens no door, and a look-up by
digest takes the same time whatever the stranger sends.
"""

import asyncio
import hashlib
import re
import secrets
import string
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import psycopg
import structlog
from django.db import transaction

from apps.gateway.limits.waiting import PRIORITIES
from apps.gateway.models import Key, Team
from citadel.caller import Caller, plain_name
from citadel.database import Pool
from citadel.errors import Unauthenticated, Unavailable
from citadel.sections import ClientLimit

log = structlog.get_logger("citadel.keys")

ALPHABET = string.digits + string.ascii_letters
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 10, 33, 6
_SHAPE = re.compile(rb"ctd_[0-9A-Za-z]{%d}_[0-9A-Za-z]{%d}" % (ID_LENGTH, SECRET_LENGTH + CHECKSUM_LENGTH))

_PAIRS = tuple((first + second).encode() for first in ALPHABET for second in ALPHABET)
_PERSON = b"citadel api key"
"""Keeps these digests apart from whatever else is made with the same secret."""

UNKNOWN_FOR = 1.0
"""Seconds for which a key that the database doesn't know is refused without asking again."""
UNKNOWN_KEPT = 10_000
INVALID = "The API key is not valid."


def mint() -> tuple[str, str]:
    """A new key and its public id."""
    key_id = _random(ID_LENGTH)
    body = f"ctd_{key_id}_{_random(SECRET_LENGTH)}"
    return body + checksum(body.encode()).decode(), key_id


def well_formed(key: bytes) -> bool:
    """Whether a key has the shape and the checksum of one of ours."""
    return _SHAPE.fullmatch(key) is not None and key.endswith(checksum(key[:-CHECKSUM_LENGTH]))


def checksum(body: bytes) -> bytes:
    """CRC-32 in six characters of base 62."""
    rest, low = divmod(zlib.crc32(body), len(_PAIRS))
    high, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


class Digester:
    """Makes what is kept of a key, under this installation's secret."""

    def __init__(self, secret: str):
        self._keyed = hashlib.blake2b(key=hashlib.sha512(secret.encode()).digest(), digest_size=32, person=_PERSON)

    def __call__(self, key: bytes) -> bytes:
        """32 bytes."""
        keyed = self._keyed.copy()
        keyed.update(key)
        return keyed.digest()


def issue(
    team: str,
    name: str,
    role: str = "developer",
    *,
    models: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    concurrent: int | None = None,
    max_priority: str = "high",
    expires: datetime | None = None,
) -> str:
    """Makes a key, and the team if it is new; gives the key, which is shown this once and kept nowhere.

    ValidationError when a value is wrong; then neither is made.
    """
    from django.conf import settings

    plain, key_id = mint()
    Team(slug=team, name=team).clean_fields(exclude=("name",))  # which has room for any slug
    with transaction.atomic():
        owner, _ = Team.objects.get_or_create(slug=team, defaults={"name": team})
        key = Key(
            key_id=key_id,
            digest=Digester(settings.SECRET_KEY)(plain.encode()),
            name=name,
            team=owner,
            role=role,
            allowed_models=list(models) if models else None,
            requests_per_minute=requests_per_minute,
            concurrent=concurrent,
            max_priority=max_priority,
            expires=expires,
        )
        key.full_clean()
        key.save()
    return plain


_COLUMNS = (
    "k.digest, k.key_id, k.name, t.slug, k.role, k.allowed_models, k.requests_per_minute, k.concurrent, "
    "extract(epoch FROM k.expires)::float8, k.max_priority"
)
_SELECT = f"SELECT {_COLUMNS} FROM gateway_key k JOIN gateway_team t ON t.id = k.team_id WHERE k.revoked IS NULL"  # noqa: S608  # constants alone


class KeyTable:
    """All keys in force, by digest: a worker's own copy, replaced whole when the epoch moves."""

    def __init__(self, secret: str, defaults: ClientLimit, pool: Pool):
        self._digest = Digester(secret)
        self._defaults = defaults
        self._pool = pool
        self._callers: Mapping[bytes, Caller] = {}
        self._unknown: dict[bytes, float] = {}
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def load(self) -> None:
        """Reads every key in force."""
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_SELECT)).fetchall()
        self._callers = {bytes(row[0]): self._caller(row) for row in rows}
        self._unknown.clear()

    def find(self, key: bytes) -> Caller | None:
        """Who holds `key`; None where the table doesn't know it. Unauthenticated when it is no key, or has expired."""
        if not well_formed(key):
            raise Unauthenticated(INVALID)
        caller = self._callers.get(self._digest(key))
        if caller:
            _check_expiry(caller)
        return caller

    async def look_up(self, key: bytes) -> Caller:
        """Who holds `key`, by the database: one made a moment ago isn't in the table yet.

        Unauthenticated when nobody does, Unavailable when that can't be known at the moment.
        """
        caller = await self._ask(self._digest(key))
        if caller is None:
            raise Unauthenticated(INVALID)
        _check_expiry(caller)
        return caller  # not out of the table: a load that began before the key was made may have replaced that

    async def _ask(self, digested: bytes) -> Caller | None:
        """One query for all who ask, and a no is kept for a second."""
        if self._unknown.get(digested, 0.0) > time.monotonic():
            return None
        task = self._asking.get(digested)
        if task is None:
            task = self._asking[digested] = asyncio.create_task(self._query(digested))
            task.add_done_callback(lambda _: self._asking.pop(digested, None))
        try:
            return await asyncio.shield(task)
        except (psycopg.Error, OSError) as error:
            log.warning("key_look_up_failed", reason=type(error).__name__)
            raise Unavailable("Keys can't be checked at the moment.", code="auth_unavailable", retry_after=2) from None

    async def _query(self, digested: bytes) -> Caller | None:
        known = self._callers
        async with self._pool.connection(timeout=2) as connection:
            row = await (await connection.execute(f"{_SELECT} AND k.digest = %s", (digested,))).fetchone()
        if row:
            caller = self._caller(row)
            if self._callers is known:  # a table read meanwhile knows better: the key may be revoked by now
                self._callers = {**known, digested: caller}
            return caller
        if len(self._unknown) >= UNKNOWN_KEPT:
            self._unknown.clear()
        self._unknown[digested] = time.monotonic() + UNKNOWN_FOR
        return None

    def _caller(self, row: Sequence[object]) -> Caller:
        _, key_id, name, team, role, models, per_minute, concurrent, expires, max_priority = row
        return Caller(
            key_id=str(key_id),
            name=str(name),
            team=str(team),
            role=str(role),
            models=_allowed(models),
            requests_per_minute=_number(per_minute, self._defaults.requests_per_minute),
            concurrent=_number(concurrent, self._defaults.concurrent),
            expires=expires if isinstance(expires, float) else None,
            max_priority=PRIORITIES.get(str(max_priority), 0),
        )


def _check_expiry(caller: Caller) -> None:
    if caller.expires is not None and caller.expires <= time.time():
        raise Unauthenticated(INVALID)


def _allowed(names: object) -> frozenset[str] | None:
    """The models that a key may use, None for all. What isn't a list of names allows none."""
    if names is None or names == []:
        return None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return frozenset(map(plain_name, names))
    return frozenset()


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
