"""Workers agree on where conversations are at home, whoever said it and when."""

import random
from collections.abc import AsyncIterator

import pytest

from apps.orchestration.routing import homes
from apps.orchestration.routing.homes import Homes
from citadel.redis import Redis
from tests.instance import Instance
from tests.redis_database import redis_database

DATABASE = 7


@pytest.fixture
async def state(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, DATABASE) as redis:
        yield redis


@pytest.mark.parametrize("seed", range(5))
async def test_all_end_with_the_same(state: Redis, seed: int) -> None:
    chance = random.Random(seed)
    workers = [Homes(state) for _ in range(4)]
    for _ in range(200):
        worker = chance.choice(workers)
        worker.remember(chance.randrange(20), chance.choice("abc"), "m")
        if chance.random() < 0.3:
            await chance.choice(workers).exchange()
    for worker in workers * 2:
        await worker.exchange()
    assert len({frozenset(worker.known.items()) for worker in workers}) == 1
    assert len(workers[0].known) == 20


async def test_a_new_worker_learns_what_was_said_before_it(state: Redis) -> None:
    old, new = Homes(state), Homes(state)
    old.remember(2**64 - 1, "s", "m")
    await old.exchange()
    await new.exchange()
    assert new.known == {2**64 - 1: "s"}
    assert (old.settled("m"), new.settled("m")) == ({"s": 1}, {}), "each counts those that it has sent itself"
    assert new.settled("another") == {}


async def test_whom_a_worker_sends_where_is_counted_once_and_moves_along(state: Redis) -> None:
    one, other = Homes(state), Homes(state)
    for _ in range(3):
        for worker in (one, other):
            worker.remember(1, "a", "m")
            worker.remember(2, "a", "m")
            await worker.exchange()
    assert one.settled("m") == other.settled("m") == {"a": 2}
    one.remember(2, "b", "m")
    assert one.settled("m") == {"a": 1, "b": 1}
    one.forget_all_but(["another"])
    assert one.settled("m") == {}


async def test_what_is_kept_is_bounded(state: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "KNOWN", 200)
    one, other = Homes(state), Homes(state)
    for number in range(1000):
        one.remember(number, "s", "m")
        if number % 100 == 99:
            await one.exchange()
            await other.exchange()
    assert len(one.known) == len(other.known) == 200
    assert 999 in other.known
    assert await state.call("XLEN", homes.STREAM) <= 400, "Redis drops them by the node"
