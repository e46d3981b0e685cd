"""What proves a key's holder beside its secret is good as soon as the database has it, and is asked for no oftener."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from psycopg_pool import AsyncConnectionPool

from apps.gateway.access.certificates.presented import Certificates
from apps.gateway.access.keys import life
from apps.gateway.access.keys.table import KeyTable
from apps.gateway.access.signatures.verifier import Signatures
from citadel import config
from citadel.errors import Unauthenticated, Unavailable
from citadel.sections import CertificatesSection, ClientLimit
from tests.gateway.access import signing
from tests.gateway.access.certificate import certificate, fingerprint, rfc9440
from tests.instance import Instance

TARGET = "/v1/models"
URL = f"http://citadel{TARGET}"


class Counted:
    """A pool that counts how often it is asked for a connection, and has none while it is away."""

    def __init__(self, pool: "AsyncConnectionPool[Any]"):
        self._pool = pool
        self.questions = 0
        self.is_away = False

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:
        self.questions += 1
        if self.is_away:
            raise OSError("nobody is there")
        async with self._pool.connection(timeout) as connection:
            yield connection


class Worker:
    """The parts of one that have read all keys there were, and are told of no others."""

    def __init__(self, pool: Counted):
        settings = config.load().model_copy(update={"certificates": CertificatesSection(header="client-cert")})
        self.pool = pool
        self.table = KeyTable(settings.secret, ClientLimit(), pool)  # type: ignore[arg-type]  # has what it uses of one
        self._signatures = Signatures(settings, self.table, Mock())
        self._certificates = Certificates(settings, self.table, Mock())

    async def signed(self, headers: dict[str, str]) -> str:
        """Whose signature that is."""
        sent = {name.encode(): value.encode() for name, value in headers.items()} | {b"host": b"citadel"}
        scope = {"method": "GET", "scheme": "http", "raw_path": TARGET.encode(), "query_string": b""}
        (caller, *_), _ = await self._signatures.verify(scope, sent, b"")
        return caller.key_id

    async def shown(self, der: bytes) -> str:
        """Whose certificate that is."""
        return (await self._certificates.caller(rfc9440(der).encode(), {})).key_id


@pytest.fixture
async def worker(citadel: Instance) -> AsyncIterator[Worker]:
    async with AsyncConnectionPool(citadel.database_url, min_size=1, open=False) as real:
        worker = Worker(Counted(real))
        await worker.table.load()
        worker.pool.questions = 0
        yield worker


def signed_by(key: str, form: str = "simple") -> dict[str, str]:
    secret = life.signing_secret(key)
    return signing.simple(secret, "GET", TARGET) if form == "simple" else signing.message(secret, "GET", URL)


def id_of(key: str) -> str:
    return key.split("_")[1]


@pytest.mark.parametrize("form", ["simple", "message"])
async def test_a_new_key_signs_at_once(citadel: Instance, worker: Worker, form: str) -> None:
    key = await asyncio.to_thread(citadel.key)
    for _ in range(3):
        assert await worker.signed(signed_by(key, form)) == id_of(key)
    assert (await worker.table.look_up(key.encode())).key_id == id_of(key)
    assert worker.pool.questions == 1, "then it is known"


@pytest.mark.parametrize("grace", [timedelta(days=1), timedelta()])
async def test_a_rotated_key_signs_at_once(citadel: Instance, worker: Worker, grace: timedelta) -> None:
    key = await asyncio.to_thread(citadel.key)
    await worker.table.load()
    rotated = await asyncio.to_thread(life.rotate, id_of(key), grace)
    worker.pool.questions = 0
    assert await worker.signed(signed_by(key)) == id_of(key)
    assert worker.pool.questions == 0, "a secret that is known is asked for nowhere"
    assert await worker.signed(signed_by(rotated)) == id_of(key)
    assert await worker.signed(signed_by(rotated)) == id_of(key)
    assert worker.pool.questions == 1
    await worker.table.load()
    if grace:
        assert await worker.signed(signed_by(key)) == id_of(key)
    else:
        with pytest.raises(Unauthenticated):
            await worker.signed(signed_by(key))


async def test_a_public_key_that_has_just_been_given_counts(citadel: Instance, worker: Worker) -> None:
    from apps.gateway.models import Key

    key, private = await asyncio.to_thread(citadel.key), Ed25519PrivateKey.generate()
    await worker.table.load()
    row = await Key.objects.aget(key_id=id_of(key))
    row.public_key = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    await asyncio.to_thread(row.full_clean)
    await row.asave()
    headers = signing.message(private, "GET", URL, keyid=id_of(key), alg="ed25519")
    assert await worker.signed(headers) == id_of(key)


async def test_a_certificate_that_has_just_been_tied_counts(citadel: Instance, worker: Worker) -> None:
    der = certificate(secrets.token_hex(4))
    with pytest.raises(Unauthenticated):
        await worker.shown(der)
    await worker.table.load()  # as a change of the keys has it: nothing is remembered of before
    key = await asyncio.to_thread(citadel.key, certificates=[fingerprint(der)])
    worker.pool.questions = 0
    assert [await worker.shown(der) for _ in range(3)] == [id_of(key)] * 3
    assert worker.pool.questions == 1
    other = await asyncio.to_thread(citadel.key)
    await asyncio.to_thread(_tie, id_of(other), fingerprint(der))
    await worker.table.load()
    with pytest.raises(Unauthenticated):  # what is tied to two proves neither
        await worker.shown(der)


def _tie(key_id: str, found: str) -> None:
    from apps.gateway.models import Key

    Key.objects.filter(key_id=key_id).update(certificates=[found])


async def test_what_is_forged_is_asked_for_once_a_second(citadel: Instance, worker: Worker) -> None:
    """By a key that is there, by one that isn't, and by what can be none."""
    known, other = [await asyncio.to_thread(citadel.key) for _ in range(2)]
    await worker.table.load()
    der = certificate(secrets.token_hex(4))
    for named, questions in ((id_of(known), 1), ("A" * 10, 1), ("A" * 11, 0), ("A", 0)):
        worker.pool.questions = 0
        for _ in range(5):
            forged = {name: value.replace(id_of(other), named) for name, value in signed_by(other).items()}
            with pytest.raises(Unauthenticated):
                await worker.signed(forged)
        assert worker.pool.questions == questions, named
    worker.pool.questions = 0
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await worker.shown(der)
    assert worker.pool.questions == 1


async def test_while_the_database_is_away_what_is_known_goes_on_and_the_rest_can_t_be_checked(
    citadel: Instance, worker: Worker
) -> None:
    der = certificate(secrets.token_hex(4))
    known = await asyncio.to_thread(citadel.key, certificates=[fingerprint(der)])
    await worker.table.load()
    new, rotated = await asyncio.to_thread(citadel.key), await asyncio.to_thread(life.rotate, id_of(known))
    worker.pool.is_away = True
    assert await worker.signed(signed_by(known)) == await worker.shown(der) == id_of(known)
    for unknown in (worker.signed(signed_by(new)), worker.signed(signed_by(rotated)), worker.shown(certificate("x"))):
        with pytest.raises(Unavailable) as refused:
            await unknown
        assert (refused.value.code, refused.value.status_code) == ("auth_unavailable", 503)
