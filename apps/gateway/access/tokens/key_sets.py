"""The keys that an issuer of tokens publishes (JWKS, RFC 7517), and when they are asked for.

They are asked for when the first token comes, and again when they are old or a token names one that isn't among them.
A token whose key is known waits but for a moment, however long the issuer takes. All workers together make one request
in `ASK_AGAIN` seconds, whoever sends what, and share the answer by Redis: who meets that request under way waits for
what comes of it. While Redis is away each worker makes one.

How old keys are goes by no date, for clocks differ and are set: a worker knows by its monotonic clock when it got them,
and of what it shares with others Redis says how long it has been there.
"""

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Sequence

import httpx
import jwt
import msgspec
import structlog

from citadel.addresses import CheckedTransport, of_issuers
from citadel.background import Background
from citadel.errors import Unavailable
from citadel.redis import Redis, RedisError
from citadel.sections import USUAL_PORTS, Config, IssuerSection

log = structlog.get_logger("citadel.tokens")

ASK_AGAIN = 30
"""Seconds between two requests for an issuer's keys."""
LOOK_AGAIN = 0.1
"""Seconds between two looks of a worker whether another one has got an answer."""
SAME = 1.0
"""Seconds by which the age of one set may seem to differ, as it is told at different times."""
FRESH = 600
"""Seconds after which keys are asked for again."""
STALE = 86_400
"""Seconds after which keys that could not be asked for again are believed no longer."""
LARGEST = 1_000_000
"""Bytes of a key set."""
MOST_KEYS = 100
WITHIN = 5.0
"""Seconds that an issuer may take."""
MOMENT = 0.5
"""Of these, what a token waits for whose key is known: most issuers have said by then whether it still is theirs."""
UNUSABLE = (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError, RecursionError)
"""What PyJWT raises for what it can't make a key of."""
ASKING = b"asking"
"""What Redis says while a worker waits for the issuer; then a word of that worker's own, whatever came of it."""
DISCOVERY = "/.well-known/openid-configuration"


class _Published(msgspec.Struct):
    """A key set as an issuer gives it, and as workers share it."""

    keys: list[msgspec.Raw]


class _Discovered(msgspec.Struct):
    issuer: str
    jwks_uri: str


_published = msgspec.json.Decoder(_Published)


class KeySet:
    """One issuer's keys in one place, as this worker knows them."""

    def __init__(self, section: IssuerSection, config: Config, redis: Redis):
        self._section = section
        self._config = config
        self._redis = redis
        place = f"{section.issuer} {section.jwks_url or ''}"
        self._name = f"access:jwks:{hashlib.sha256(place.encode()).hexdigest()[:32]}"
        self._asked = f"{self._name}:asked"
        """There for `ASK_AGAIN` seconds from the beginning of a request to the issuer on."""
        self._heard: bytes | None = None
        """What was said there when this worker last looked at the shared keys."""
        self._keys: Sequence[jwt.PyJWK] = ()
        self._got = -math.inf
        """When they were the issuer's, by the monotonic clock."""
        self._ask_at = 0.0
        """When the issuer may be asked again, by the monotonic clock, as far as this worker knows."""
        self._background = Background("issuers' keys")
        self._renewing: asyncio.Task[None] | None = None
        """Not cut off with the request that began it: it may be the only one for a while that asks the issuer."""

    async def find(self, kid: str) -> Sequence[jwt.PyJWK]:
        """The keys of that id, which may be one of each type (RFC 7517, 4.5), or all where a token names none; nothing
        where the issuer has no such key.

        Unavailable while none of its keys can be had.
        """
        if self._age > STALE or not self._known(kid):
            await asyncio.shield(self._renewal())
        elif self._age > FRESH:
            await asyncio.wait({self._renewal()}, timeout=MOMENT)
        if self._age > STALE:
            message = "The keys of this token's issuer can't be had at the moment."
            raise Unavailable(message, code="auth_unavailable", retry_after=self._ask_at - time.monotonic())
        return self._known(kid)

    @property
    def until(self) -> float:
        """Until when what they have verified is good unasked, by the monotonic clock: they may be withdrawn by then."""
        return max(self._got + FRESH, time.monotonic() + ASK_AGAIN)

    def _known(self, kid: str) -> Sequence[jwt.PyJWK]:
        return tuple(key for key in self._keys if key.key_id == kid) if kid else self._keys

    @property
    def _age(self) -> float:
        return time.monotonic() - self._got

    def _renewal(self) -> asyncio.Task[None]:
        """The one that runs, or a new one."""
        if self._renewing is None or self._renewing.done():
            self._renewing = self._background.begin(self._renew())
        return self._renewing

    async def _renew(self) -> None:
        """Takes what another worker gets, or asks the issuer, where nobody has of late."""
        try:
            if not await self._is_to_ask():
                return
        except RedisError:
            if time.monotonic() < self._ask_at:
                return
        try:
            await self._ask()
        finally:
            self._redis.tell("SET", self._asked, secrets.token_hex(8), "XX", "KEEPTTL")

    async def _is_to_ask(self) -> bool:
        """Whether nobody has asked of late, so that it is this worker's turn. Else it has what the one got who did, for
        whom it has waited. RedisError.
        """
        while True:
            said, left = await asyncio.gather(
                self._redis.call("GET", self._asked), self._redis.call("PTTL", self._asked)
            )
            if said is None:
                await self._look()
                if await self._redis.call("SET", self._asked, ASKING, "NX", "EX", ASK_AGAIN):
                    return True
            elif said == ASKING and left > (ASK_AGAIN - WITHIN) * 1000:  # who asks for longer has died over it
                await asyncio.sleep(LOOK_AGAIN)
            else:
                self._ask_at = time.monotonic() + left / 1000
                if said != self._heard:
                    await self._look()
                    self._heard = said
                return False

    async def _ask(self) -> None:
        """Asks the issuer, and shares what it says."""
        self._ask_at = time.monotonic() + ASK_AGAIN
        try:
            async with asyncio.timeout(WITHIN):
                fetched = await self._fetch()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, RecursionError) as error:
            told = {"reason": type(error).__name__, "error": str(error)[:200]}
            log.warning("issuer_keys_unavailable", issuer=self._section.issuer, **told)
            return
        self._take(fetched, time.monotonic())
        self._redis.tell("SET", self._name, msgspec.json.encode(_Published(fetched)), "EX", STALE)

    async def _look(self) -> None:
        """Takes what the workers share, where that is younger than what this one has. RedisError."""
        # In this order: of what another one writes in between, the age of the former is said, and not the other way.
        left, shared = await asyncio.gather(self._redis.call("PTTL", self._name), self._redis.call("GET", self._name))
        got = time.monotonic() - max(0.0, STALE - left / 1000)
        if shared is not None and got - self._got > SAME:
            self._take(_published.decode(shared).keys, got)

    def _take(self, published: list[msgspec.Raw], got: float) -> None:
        """Keeps those keys that can verify what this issuer may sign by."""
        keys: list[jwt.PyJWK] = []
        for raw in published[:MOST_KEYS]:
            try:
                key = jwt.PyJWK(msgspec.json.decode(raw))
            except UNUSABLE:
                continue  # of a kind that nobody here verifies by
            if key.key_type != "oct" and key.public_key_use in (None, "sig") and isinstance(key.key_id, str | None):
                keys.append(key)
        if keys:  # an issuer that publishes none has made a mistake, and its keys until now are believed on
            self._keys, self._got = tuple(keys), got

    async def _fetch(self) -> list[msgspec.Raw]:
        url = self._section.jwks_url or await self._discover()
        return msgspec.json.decode(await self._read(url), type=_Published).keys

    async def _discover(self) -> str:
        """Where its keys are, as it says itself (OpenID Connect Discovery 1.0, section 4)."""
        found = msgspec.json.decode(await self._read(self._section.issuer.rstrip("/") + DISCOVERY), type=_Discovered)
        if found.issuer != self._section.issuer:
            raise ValueError("discovery speaks of another issuer")
        return found.jwks_uri

    async def _read(self, url: str) -> bytes:
        """What is there, in `LARGEST` bytes at most; a redirect is no answer. httpx's errors, ValueError."""
        where = httpx.URL(url)
        port = 1 if where.port is None else where.port
        if where.scheme not in USUAL_PORTS or not where.host or where.userinfo or not 0 < port < 65536:
            raise ValueError("no address of a key set: one like https://issuer.example/keys, without a name before it")
        rule = of_issuers(self._config, in_clear=where.scheme == "http")
        async with (
            httpx.AsyncClient(transport=CheckedTransport(rule), trust_env=False, timeout=WITHIN) as client,
            client.stream("GET", where) as response,
        ):
            response.raise_for_status()
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LARGEST:
                    raise ValueError("a key set that is too large")
            return body
