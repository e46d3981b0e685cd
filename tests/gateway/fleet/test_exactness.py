"""10,000 requests at once, each on a connection of its own, over four workers: what a limit lets in is exactly N, and
nothing else comes back than what that says.
"""

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest

from apps.gateway.access.keys.shape import Digester
from apps.gateway.access.signatures.secret import SigningSecrets
from citadel import config
from tests.gateway.access import signing
from tests.gateway.client import CHAT, chat
from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import SETTINGS, Four, left_as_it_was
from tests.instance import Instance, running

pytestmark = [pytest.mark.faults, pytest.mark.alone]

AT_ONCE = 10_000
MORE = 14_000
"""Before all that."""
THOUSANDS = 4_000
"""At once, where the number of requests that are let in is small."""
SAME = 100
"""Times that one signed request comes at once."""
WAVE = 500
"""Connections that are opened together: more would overflow the queue of those to be accepted."""
WITHIN = 50.0
"""Seconds for all answers: less than the window of a minute."""
ANSWER = 50
"""Tokens of an answer, by `max_tokens`."""
LASTING = "slow_chunks 20000"
"""How a server answers whose streams last longer than a test."""


class Exchange(asyncio.Protocol):
    """One connection: what came back on it."""

    def __init__(self, answered: asyncio.Semaphore) -> None:
        self.received = b""
        self.is_done = False
        self._answered = answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if b"text/event-stream" in head if not length else len(body) == int(length[1]):
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()

    def _done(self) -> None:
        if not self.is_done:
            self.is_done = True
            self._answered.release()

    @property
    def verdict(self) -> tuple[int, str]:
        """Status, and the code of an error; 0 where the connection broke off."""
        if not self.received:
            return 0, ""
        status = int(self.received[9:12])
        code = self.received.partition(b'"code":"')[2].partition(b'"')[0].decode() if status >= 400 else ""
        return status, code


@asynccontextmanager
async def connected(citadel: Instance, count: int = AT_ONCE) -> AsyncIterator["Crowd"]:
    """So many open connections."""
    parts, loop, answered = urlsplit(citadel.url), asyncio.get_running_loop(), asyncio.Semaphore(0)
    exchanges: list[Exchange] = []

    async def connect() -> None:
        _, exchange = await loop.create_connection(lambda: Exchange(answered), parts.hostname, parts.port)
        exchanges.append(exchange)

    try:
        for begun in range(0, count, WAVE):
            await asyncio.gather(*(connect() for _ in range(min(WAVE, count - begun))))
        yield Crowd(exchanges, answered)
    finally:
        for exchange in exchanges:
            exchange.transport.close()
        await asyncio.sleep(0.5)


def request(key: str, model: str, *, stream: bool) -> bytes:
    """A chat that no cache knows."""
    message = {"role": "user", "content": secrets.token_hex(16)}
    body = json.dumps({"model": model, "messages": [message], "max_tokens": ANSWER, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: citadel\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Crowd:
    """Open connections."""

    exchanges: list[Exchange]
    answered: asyncio.Semaphore

    async def fire(self, keys: list[str], model: str, *, stream: bool = False) -> Counter[tuple[int, str]]:
        """Sends one request on each connection, the keys in turn; what came back: of a stream its beginning."""
        count = len(self.exchanges)
        return await self.send(request(keys[number % len(keys)], model, stream=stream) for number in range(count))

    async def send(self, requests: Iterable[bytes]) -> Counter[tuple[int, str]]:
        """The same with these, one for each connection."""
        for exchange, sent in zip(self.exchanges, requests, strict=True):
            exchange.transport.write(sent)
        async with asyncio.timeout(WITHIN):
            for _ in self.exchanges:
                await self.answered.acquire()
        return Counter(exchange.verdict for exchange in self.exchanges)


@pytest.fixture(scope="module", autouse=True)
def used_to_crowds(four_workers: Elsewhere) -> None:
    """A worker keeps for the next what its most requests at once have taken, 15 to 20 KB each: it is free, and all that
    is left of a crowd, but Python gives the system back only what lies together in whole megabytes. Of 10,000 one of
    the four may get 1,500 and another 4,000, at one time this one and at another that one; so first come more.
    """
    key = four_workers.key(requests_per_minute=500)

    async def come() -> None:
        async with connected(four_workers.citadel, MORE) as crowd:
            await crowd.fire([key], four_workers.model, stream=True)

    asyncio.run(come())


def keys_of(elsewhere: Elsewhere, whose: str, **limits: int | None) -> list[str]:
    """A key with these limits, or two of a team which has them; None is what the configuration says."""
    keys = [elsewhere.key(), elsewhere.key()] if whose == "team" else [elsewhere.key()]
    ids = [key.split("_")[1] for key in keys]
    wanted = ", ".join(f"{name} = %s" for name in limits)
    with psycopg.connect(elsewhere.citadel.database_url) as connection:
        if whose == "team":
            connection.execute(
                "UPDATE gateway_key SET team_id = (SELECT team_id FROM gateway_key WHERE key_id = %s) "
                "WHERE key_id = %s",
                ids,
            )
            where = "id = (SELECT team_id FROM gateway_key WHERE key_id = %s)"
        else:
            where = "key_id = %s"
        connection.execute(f"UPDATE gateway_{whose} SET {wanted} WHERE {where}", [*limits.values(), *ids[:1]])
    elsewhere.citadel.settle()
    return keys


async def needed(four: Four, model: str) -> int:
    """Tokens that one `request` reserves, by what is left of a limit that is far away."""
    [key] = keys_of(four.elsewhere, "key", tokens_per_minute=1_000_000)
    async with connected(four.citadel, 1) as crowd:
        assert await crowd.fire([key], model) == {(200, ""): 1}
        head = crowd.exchanges[0].received.decode("latin-1").lower()
    return 1_000_000 - int(head.partition("x-ratelimit-remaining-tokens: ")[2].partition("\r\n")[0])


@pytest.mark.parametrize("whose", ["key", "team"])
async def test_exactly_n_requests_a_minute(four: Four, model: str, whose: str) -> None:
    four.server(model, tokens=1)
    keys = keys_of(four.elsewhere, whose, requests_per_minute=700)
    async with connected(four.citadel) as crowd:
        told = await crowd.fire(keys, model)
    assert told == {(200, ""): 700, (429, "rate_limit_exceeded"): AT_ONCE - 700}


@pytest.mark.parametrize("whose", ["key", "team"])
async def test_exactly_so_many_tokens_a_minute(four: Four, model: str, whose: str) -> None:
    """As no answer ends, nothing is given back: 300 have their reservations, and the next would need one token more."""
    server = four.server(model)
    need = await needed(four, model)
    server.behave(LASTING)
    keys = keys_of(four.elsewhere, whose, tokens_per_minute=301 * need - 1)
    async with connected(four.citadel) as crowd:
        told = await crowd.fire(keys, model, stream=True)
    assert told == {(200, ""): 300, (429, "token_limit_exceeded"): AT_ONCE - 300}


@pytest.mark.parametrize("whose", ["key", "team"])
async def test_exactly_n_at_once(four: Four, model: str, whose: str) -> None:
    """Each gives its place back when its client leaves, and the next N come in."""
    server = four.server(model)
    keys = keys_of(four.elsewhere, whose, concurrent=300)
    server.behave(LASTING)
    for _ in range(2):
        async with connected(four.citadel) as crowd:
            told = await crowd.fire(keys, model, stream=True)
        assert told == {(200, ""): 300, (429, "concurrency_limit_exceeded"): AT_ONCE - 300}


async def test_limits_of_several_kinds_at_once(four: Four, model: str) -> None:
    """The narrowest decides, and what it refuses uses up nothing of the others."""
    four.server(model, tokens=1)
    [key] = keys_of(four.elsewhere, "key", requests_per_minute=900, concurrent=5000, tokens_per_minute=9_000_000)
    async with connected(four.citadel) as crowd:
        told = await crowd.fire([key], model)
    assert told.pop((200, "")) == 900
    assert told.total() == AT_ONCE - 900
    assert {status for status, _ in told} == {429}


@pytest.mark.parametrize(("beginning", "requests", "at_once"), [("", 60, 5), ("mixtral-", 10, 2)])
async def test_as_many_as_is_usual(four: Four, model: str, beginning: str, requests: int, at_once: int) -> None:
    """For a key without limits of its own, by the configured ones of all clients, and of the class heavyweight, which
    has models of that name.
    """
    model = beginning + model
    server = four.server(model, tokens=1)
    keys = keys_of(four.elsewhere, "key", requests_per_minute=None)
    async with connected(four.citadel, THOUSANDS) as crowd:
        told = await crowd.fire(keys, model)
    assert told == {(200, ""): requests, (429, "rate_limit_exceeded"): THOUSANDS - requests}
    server.behave(LASTING)
    keys = keys_of(four.elsewhere, "key", concurrent=None)
    async with connected(four.citadel, THOUSANDS) as crowd:
        told = await crowd.fire(keys, model, stream=True)
    assert told == {(200, ""): at_once, (429, "concurrency_limit_exceeded"): THOUSANDS - at_once}


OFTEN, TOGETHER = "often", "together"
"""Models with limits of their own."""
PER_MINUTE, BURST = 1000, 100
BOUNDED = {
    **SETTINGS,
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": str(PER_MINUTE),
    "CITADEL_LIMITS__GLOBAL__BURST": str(BURST),
}
OF_MODELS = {"limits": {"models": {OFTEN: {"requests_per_minute": 70}, TOGETHER: {"concurrent": 30}}}}


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """Four workers with the usual limit of all together."""
    home = tmp_path_factory.mktemp("bounded")
    settings = home / "config" / "global" / "citadel.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(OF_MODELS))  # which is YAML
    with running(home, BOUNDED) as citadel, Elsewhere.on(citadel) as bounded:
        yield bounded


@pytest.fixture
async def full_bucket(bounded: Elsewhere) -> Elsewhere:
    """The same, when nobody has asked for long enough."""
    await asyncio.sleep(60 * BURST / PER_MINUTE)
    return bounded


async def test_all_together_have_a_bucket_and_no_more(full_bucket: Elsewhere) -> None:
    """What it holds, and what comes to it while they are answered."""
    keys = [full_bucket.key() for _ in range(4)]
    full_bucket.citadel.settle()
    async with connected(full_bucket.citadel, THOUSANDS) as crowd:
        begun = time.monotonic()
        told = await crowd.fire(keys, full_bucket.model)
        seconds = time.monotonic() - begun
    admitted = told.pop((200, ""))
    assert told == {(429, "global_rate_limit_exceeded"): THOUSANDS - admitted}
    assert BURST <= admitted <= BURST + PER_MINUTE / 60 * seconds


@pytest.mark.parametrize(
    ("model", "stream", "code", "count"),
    [(OFTEN, False, "rate_limit_exceeded", 70), (TOGETHER, True, "concurrency_limit_exceeded", 30)],
)
async def test_a_model_has_its_limit_for_all_together(
    full_bucket: Elsewhere, model: str, stream: bool, code: str, count: int
) -> None:
    """Whose number the bucket has room for."""
    four = Four(full_bucket.citadel, full_bucket)
    with left_as_it_was(four), four.stack:
        server = four.server(model, tokens=1)
        if stream:
            server.behave(LASTING)
        keys = [full_bucket.key() for _ in range(3)]
        full_bucket.citadel.settle()
        async with connected(full_bucket.citadel, THOUSANDS) as crowd:
            told = await crowd.fire(keys, model, stream=stream)
    assert told == {(200, ""): count, (429, code): THOUSANDS - count}


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", CHAT)])
async def test_a_nonce_that_comes_many_times_at_once_is_good_once(
    four: Four, model: str, method: str, path: str
) -> None:
    four.server(model, tokens=1)
    key, secret = four.elsewhere.key(), config.read({"CITADEL_HOME": str(four.citadel.home)})[0].secret
    four.citadel.settle()
    body = json.dumps(chat(model)).encode() if method == "POST" else b""
    signed_by = SigningSecrets(secret)(key.split("_")[1], Digester(secret)(key.encode())).decode()
    headers = {"host": "citadel", "content-type": "application/json", "content-length": str(len(body))}
    headers |= signing.simple(signed_by, method, path, body)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sent = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body
    for repeated in (False, True):  # also while the first to come is being answered, and when it has been
        async with connected(four.citadel, SAME) as crowd:
            told = await crowd.send([sent] * SAME)
        good = 0 if repeated else 1
        assert told == Counter({(200, ""): good, (401, "nonce_used"): SAME - good})
