"""API keys: `ctd_` + ten characters of public id + `_` + 33 of secret (196 bits) + six of checksum.

The checksum is verified before anything is looked up, so that noise costs nothing. What is looked up is an
HMAC-SHA-256 of the whole key under this installation's secret: a stolen table opens no door, and a look-up by digest
takes the same time whatever the stranger sends.
"""

import asyncio
import hmac
import re
import secrets
import string
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import psycopg
import structlog
from django.db import transaction

from apps.gateway.models import Key, Team
from citadel.caller import Caller
from citadel.config import ClientLimit
from citadel.database import Pool
from citadel.errors import Unauthenticated, Unavailable

log = structlog.get_logger("citadel.keys")

ALPHABET = string.digits + string.ascii_letters
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 10, 33, 6
_SHAPE = re.compile(rb"ctd_[0-9A-Za-z]{%d}_[0-9A-Za-z]{%d}" % (ID_LENGTH, SECRET_LENGTH + CHECKSUM_LENGTH))

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
    return bool(_SHAPE.fullmatch(key)) and hmac.compare_digest(checksum(key[:-CHECKSUM_LENGTH]), key[-CHECKSUM_LENGTH:])


def checksum(body: bytes) -> bytes:
    """CRC-32 in six characters of base 62."""
    number, text = zlib.crc32(body), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        text = ALPHABET[digit] + text
    return text.encode()


def digest(key: bytes, secret: bytes) -> bytes:
    """What is kept of a key."""
    return hmac.digest(secret, key, "sha256")


def issue(
    team: str,
    name: str,
    role: str = "developer",
    *,
    models: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    concurrent: int | None = None,
    expires: datetime | None = None,
) -> str:
    """Makes a key, and the team if it is new; gives the key, which is shown this once and kept nowhere."""
    from django.conf import settings

    plain, key_id = mint()
    with transaction.atomic():
        owner, _ = Team.objects.get_or_create(slug=team, defaults={"name": team})
        key = Key(
            key_id=key_id,
            digest=digest(plain.encode(), settings.SECRET_KEY.encode()),
            name=name,
            team=owner,
            role=role,
            allowed_models=list(models) if models else None,
            requests_per_minute=requests_per_minute,
            concurrent=concurrent,
            expires=expires,
        )
        key.full_clean()
        key.save()
    return plain


_COLUMNS = (
    "k.digest, k.key_id, k.name, t.slug, k.role, k.allowed_models, k.requests_per_minute, k.concurrent, "
    "extract(epoch FROM k.expires)::float8"
)
_SELECT = f"SELECT {_COLUMNS} FROM gateway_key k JOIN gateway_team t ON t.id = k.team_id WHERE k.revoked IS NULL"  # noqa: S608  # constants alone


class KeyTable:
    """All keys in force, by digest: a worker's own copy, replaced whole when the epoch moves."""

    def __init__(self, secret: str, defaults: ClientLimit, pool: Pool):
        self._secret = secret.encode()
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

    async def authenticate(self, key: bytes) -> Caller:
        """Who holds `key`. Unauthenticated when nobody does, Unavailable when that can't be known at the moment."""
        if not well_formed(key):
            raise Unauthenticated(INVALID)
        digested = hmac.digest(self._secret, key, "sha256")
        caller = self._callers.get(digested) or await self._look_up(digested)
        if caller is None or (caller.expires is not None and caller.expires <= time.time()):
            raise Unauthenticated(INVALID)
        return caller

    async def _look_up(self, digested: bytes) -> Caller | None:
        """A key made a moment ago isn't in the table yet: one query for all who ask, and a no is kept for a second."""
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
        async with self._pool.connection(timeout=2) as connection:
            row = await (await connection.execute(f"{_SELECT} AND k.digest = %s", (digested,))).fetchone()
        if row:
            caller = self._caller(row)
            self._callers = {**self._callers, digested: caller}
            return caller
        if len(self._unknown) >= UNKNOWN_KEPT:
            self._unknown.clear()
        self._unknown[digested] = time.monotonic() + UNKNOWN_FOR
        return None

    def _caller(self, row: Sequence[object]) -> Caller:
        _, key_id, name, team, role, models, per_minute, concurrent, expires = row
        return Caller(
            key_id=str(key_id),
            name=str(name),
            team=str(team),
            role=str(role),
            models=frozenset(models) if isinstance(models, Iterable) and models else None,  # a list of names, or null
            requests_per_minute=_number(per_minute, self._defaults.requests_per_minute),
            concurrent=_number(concurrent, self._defaults.concurrent),
            expires=expires if isinstance(expires, float) else None,
        )


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
