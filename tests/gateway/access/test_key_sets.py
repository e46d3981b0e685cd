"""How long an issuer's keys are believed, by workers whose clocks differ and are set; the issuer and Redis are real."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import PyJWK

from apps.gateway.access.keys.table import KeyTable
from apps.gateway.access.tokens import key_sets, verifier
from apps.gateway.access.tokens.key_sets import ASK_AGAIN, FRESH, LOOK_AGAIN, MOMENT, STALE, WITHIN, KeySet
from apps.gateway.access.tokens.verifier import Verifier
from citadel.config import load
from citadel.errors import Unauthenticated, Unavailable
from citadel.redis import Redis
from citadel.sections import Config, IssuerSection
from tests.gateway.access.issuer import AUDIENCE, Issuer
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.redis_database import redis_database

OFF = 600.0


class Clock:
    """A worker's clocks, which the test moves."""

    date = 0.0
    steady = 0.0

    def time(self) -> float:
        return time.time() + self.date

    def monotonic(self) -> float:
        return time.monotonic() + self.steady


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_sets, "time", clock)
    monkeypatch.setattr(verifier, "time", clock)
    return clock


@pytest.fixture
async def redis(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, 4) as state:
        yield state


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture
def config(issuer: Issuer) -> Config:
    """Where the issuer is trusted."""
    tree = load()
    section = IssuerSection(issuer=issuer.url, audience=AUDIENCE, team="t", role="developer")
    return tree.model_copy(
        update={
            "security": tree.security.model_copy(update={"issuer_networks": ("loopback",)}),
            "tokens": tree.tokens.model_copy(update={"issuers": (section,)}),
        }
    )


def worker(config: Config, redis: Redis) -> KeySet:
    """The keys as one more worker knows them."""
    return KeySet(config.tokens.issuers[0], config, redis)


def rotate(issuer: Issuer) -> None:
    """Withdraws the key `rsa`, and publishes `rsa-2`."""
    del issuer.keys["rsa"]
    issuer.keys["rsa-2"] = rsa.generate_private_key(65537, 2048)


async def pass_by(seconds: float, clock: Clock, redis: Redis) -> None:
    """As if so long had passed for workers and for Redis."""
    clock.steady += seconds
    for name in await redis.call("KEYS", "access:jwks:*"):
        left = await redis.call("PTTL", name)
        await redis.call("PEXPIRE", name, left - int(seconds * 1000))


@pytest.mark.parametrize("first", [OFF, -OFF])
async def test_a_new_key_is_found_whatever_the_date_is_set_to(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock, first: float
) -> None:
    clock.date = first
    keys = worker(config, redis)
    assert await keys.find("rsa")
    clock.date = 0.0
    rotate(issuer)
    await pass_by(ASK_AGAIN, clock, redis)
    assert await keys.find("rsa-2")
    assert not await keys.find("rsa")


@pytest.mark.parametrize("ahead", [OFF, -OFF])
async def test_workers_whose_dates_differ_take_each_other_s_keys(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock, ahead: float
) -> None:
    one, other = worker(config, redis), worker(config, redis)
    clock.date = ahead
    assert await one.find("rsa")
    clock.date = 0.0
    assert await other.find("rsa")
    rotate(issuer)
    await pass_by(ASK_AGAIN, clock, redis)
    assert await other.find("rsa-2")
    clock.date = ahead
    assert await one.find("rsa-2")
    assert len(issuer.asked) == 2


async def test_what_is_shared_is_as_old_as_redis_says(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    assert await worker(config, redis).find("rsa")
    [name] = await redis.call("KEYS", "access:jwks:" + 32 * "?")
    await pass_by(FRESH - 10, clock, redis)
    await redis.call("SET", f"{name.decode()}:asked", 1, "EX", 15)  # else who comes first would ask anew
    late = worker(config, redis)
    assert await late.find("rsa")
    assert len(issuer.asked) == 1
    rotate(issuer)
    await pass_by(20, clock, redis)
    assert not await late.find("rsa")
    assert len(issuer.asked) == 2


async def test_after_a_day_keys_are_believed_no_longer(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    keys = worker(config, redis)
    assert await keys.find("rsa")
    issuer.keys.clear()
    await pass_by(STALE - 10, clock, redis)
    assert await keys.find("rsa")
    await pass_by(20, clock, redis)
    with pytest.raises(Unavailable):
        await keys.find("rsa")


class Held(KeySet):
    """Whose issuer answers when the test lets it."""

    def __init__(self, config: Config, redis: Redis) -> None:
        super().__init__(config.tokens.issuers[0], config, redis)
        self.go, self.asks, self.begun, self.fails = asyncio.Event(), asyncio.Event(), 0, False
        self.go.set()

    async def _fetch(self) -> list[msgspec.Raw]:
        self.begun += 1
        self.asks.set()
        await self.go.wait()
        if self.fails:
            raise OSError("gone")
        return await super()._fetch()

    async def begin(self, kid: str) -> asyncio.Task[PyJWK | None]:
        """Asks the issuer for that key, which answers when the test lets it."""
        self.go.clear()
        self.asks.clear()
        found = asyncio.create_task(self.find(kid))
        await self.asks.wait()
        return found


async def test_a_slow_issuer_holds_up_no_token_whose_key_is_known(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    keys = Held(config, redis)
    assert await keys.find("rsa")
    await pass_by(FRESH + 1, clock, redis)
    keys.go.clear()
    rotate(issuer)
    begun = time.monotonic()
    found = await asyncio.gather(*(keys.find("rsa") for _ in range(20)))
    assert None not in found
    assert MOMENT - 0.1 < time.monotonic() - begun < WITHIN / 2
    unknown = asyncio.create_task(keys.find("rsa-2"))
    await asyncio.sleep(0.1)
    assert not unknown.done(), "who brings an unknown key waits for what the issuer says"
    keys.go.set()
    assert await unknown is not None
    assert not await keys.find("rsa")
    assert keys.begun == 2


async def test_a_new_key_is_waited_for_while_another_worker_asks(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    """Also by who has just looked, and in a worker without keys."""
    asks, knows, new = Held(config, redis), worker(config, redis), worker(config, redis)
    assert await asks.find("rsa")
    assert await knows.find("rsa")
    rotate(issuer)
    await pass_by(ASK_AGAIN / 2, clock, redis)
    assert not await knows.find("rsa-2")
    [name] = await redis.call("KEYS", "access:jwks:*:asked")
    await redis.call("DEL", name)
    asked = await asks.begin("rsa-2")
    others = [asyncio.create_task(keys.find("rsa-2")) for keys in (knows, new) for _ in range(20)]
    await asyncio.sleep(3 * LOOK_AGAIN)
    assert not any(task.done() for task in others)
    asks.go.set()
    assert None not in await asyncio.gather(asked, *others)
    assert len(issuer.asked) == 2


async def test_who_waits_for_another_worker_hears_that_it_got_nothing(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    asks, other = Held(config, redis), worker(config, redis)
    asks.fails = True
    asked = await asks.begin("rsa")
    waits = asyncio.create_task(other.find("rsa"))
    await pass_by(2.5, clock, redis)
    await asyncio.sleep(2 * LOOK_AGAIN)
    assert not waits.done()
    asks.go.set()
    for task in (asked, waits):
        with pytest.raises(Unavailable) as told:
            await asyncio.wait_for(task, 1 + HELD_UP)
        assert told.value.retry_after is not None
        assert ASK_AGAIN - 4 < told.value.retry_after < ASK_AGAIN - 2.5, "what is left of the time"
    assert not issuer.asked


async def test_who_waits_for_a_worker_that_dies_waits_no_longer_than_for_an_issuer(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock
) -> None:
    dies, other = Held(config, redis), worker(config, redis)
    assert await other.find("rsa")
    await pass_by(ASK_AGAIN, clock, redis)
    dead = await dies.begin("none")
    await pass_by(WITHIN - 1, clock, redis)
    begun = time.monotonic()
    assert not await other.find("none")
    assert 0.5 < time.monotonic() - begun < 2 + HELD_UP
    begun = time.monotonic()
    assert not await other.find("none")
    assert time.monotonic() - begun < LOOK_AGAIN + HELD_UP, "nor does anybody later"
    dies.go.set()
    await dead


async def test_a_flood_of_unknown_keys_costs_the_issuer_one_request_and_waits_for_nothing(
    config: Config, issuer: Issuer, redis: Redis
) -> None:
    workers = [worker(config, redis) for _ in range(4)]
    await asyncio.gather(*(keys.find("rsa") for keys in workers))
    begun = time.monotonic()
    for turn in range(25):
        assert {await keys.find(f"none-{turn}") for keys in workers} == {()}
    assert time.monotonic() - begun < 25 * LOOK_AGAIN + HELD_UP
    assert len(issuer.asked) == 1


async def test_a_dead_issuer_holds_up_no_token_whose_key_is_known(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is asked again when its time has come."""
    keys = Held(config, redis)
    assert await keys.find("rsa")
    monkeypatch.setattr(key_sets, "WITHIN", 0.2)
    keys.go.clear()
    for turn in range(3):
        await pass_by(FRESH + LOOK_AGAIN, clock, redis)
        assert await keys.find("rsa")
        assert keys.begun == 2 + turn
    await pass_by(STALE, clock, redis)
    with pytest.raises(Unavailable):
        await keys.find("rsa")


async def test_a_withdrawn_key_is_refused_where_its_issuer_says_so_in_time(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after hours in which no token has come."""
    monkeypatch.setattr(key_sets, "MOMENT", WITHIN)
    keys = worker(config, redis)
    assert await keys.find("rsa")
    rotate(issuer)
    await pass_by(STALE / 2, clock, redis)
    assert not await keys.find("rsa")


@pytest.mark.parametrize(("age", "more"), [(0, FRESH + 1), (FRESH - 1, ASK_AGAIN + 1)])
async def test_a_verdict_holds_no_longer_than_keys_are_fresh(
    config: Config, issuer: Issuer, redis: Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch, age: int, more: int
) -> None:
    monkeypatch.setattr(key_sets, "MOMENT", WITHIN)
    nobody: Any = None  # no database is asked here
    tokens = Verifier(config, KeyTable(config.secret, config.limits.client, nobody), redis, nobody, time.time)
    assert await tokens.caller(issuer.token(sub="first").encode())
    await pass_by(age, clock, redis)
    token = issuer.token().encode()
    assert await tokens.caller(token)
    rotate(issuer)
    await pass_by(more, clock, redis)
    with pytest.raises(Unauthenticated, match="no such key"):
        await tokens.caller(token)
