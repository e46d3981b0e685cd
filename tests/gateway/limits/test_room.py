"""Places that are handed over on one connection while the word that there is none yet is under way on another."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from apps.gateway.limits.waiting import NoPlace, Room
from citadel.redis import Redis
from tests.instance import Instance


class Hall:
    """A room of a worker, and what it holds in it."""

    def __init__(self, redis: Redis) -> None:
        self.held: Counter[str] = Counter()
        self.worker = secrets.token_hex(4)
        self.room = Room(redis, lambda server: self.held.update([server]), self._give_back, lambda: None)
        self._redis = redis

    def _give_back(self, server: str) -> None:
        self.held[server] -= 1

    async def tell(self, words: str) -> None:
        """As the script does it."""
        await self._redis.call("RPUSH", f"limits:grants:{self.worker}", words)
        await asyncio.sleep(0.2)
        assert not await self._redis.call("LLEN", f"limits:grants:{self.worker}"), "it has been heard"


@pytest.fixture
async def hall(citadel: Instance) -> AsyncIterator[Hall]:
    """It listens, since somebody waits all the time."""
    redis, ear = (Redis(citadel.redis_url, timeout=5, connect_timeout=5, name=name) for name in ("tell", "ear"))
    await redis.start()
    await ear.start()
    hall = Hall(redis)
    hall.room._redis = ear
    somebody = asyncio.create_task(hall.room.wait(hall.worker, "somebody", 1, 60.0))
    await asyncio.sleep(0.05)
    yield hall
    somebody.cancel()
    await asyncio.gather(somebody, return_exceptions=True)
    await hall.room.stop()
    await redis.stop()
    await ear.stop()


async def test_a_place_that_comes_before_its_waiter_knows_that_it_waits(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t server")
    assert await hall.room.wait(hall.worker, "t", 1, 0.5) == "server"
    assert hall.held == {"server": 1}


async def test_a_refusal_that_comes_before_its_waiter_knows(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t")
    with pytest.raises(NoPlace) as refused:
        await hall.room.wait(hall.worker, "t", 1, 0.5)
    assert refused.value.code == "queue_full"


async def test_a_place_of_one_who_has_gone_is_given_back(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t server")
    hall.room.expect_no_more("t")
    await hall.tell("stranger server")
    assert hall.held == {"server": 0}


async def test_a_place_that_comes_as_its_waiter_goes_is_given_back(hall: Hall) -> None:
    waiting = asyncio.create_task(hall.room.wait(hall.worker, "t", 1, 60.0))
    await asyncio.sleep(0.05)
    hall.room._take("t", "server")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert hall.held == {"server": 0}
    assert "t" not in hall.room.left
