"""Places that are handed over on one connection while the word that there is none yet is under way on another."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from apps.gateway.limits.waiting import LISTEN, Estimate, NoPlace, Place, Room, Waiter, Wanted, too_many_wait
from citadel.redis import Redis
from tests.instance import Instance


def wanted(*servers: str, limit: int = 1, **more: Any) -> Wanted:
    named = tuple((server, limit) for server in servers)
    return Wanted("m", "t", 1, named, 10, **{"patience": 5.0, "hold_ms": 1.0, **more})


class Hall:
    """A room of a worker, and what it holds in it."""

    somebody: "asyncio.Task[Place | None]"

    def __init__(self, redis: Redis) -> None:
        self.held: Counter[str] = Counter()
        self.worker = secrets.token_hex(4)
        self.told = 0
        self.room = Room(redis, lambda server: self.held.update([server]), self._give_back, self._hear, lambda: None)
        self._redis = redis

    def waiter(self, ticket: str, patience: float = 0.5, *planned: Wanted | None) -> Waiter:
        """Who waits for the server, and for what is planned next whenever the fleet moves."""
        later = iter(planned)

        def again() -> Wanted | None:
            now = next(later)
            return now and now._replace(again=again)

        first = wanted("server", patience=patience)
        return Waiter(ticket, first._replace(again=again) if planned else first, Estimate(3, 7_000))

    async def wait(self, waiter: Waiter) -> Place | None:
        """Its wait, which was asked for just now."""
        return await self.room.wait(self.worker, waiter, self.room.looks)

    def _hear(self) -> None:
        self.told += 1

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
    hall.somebody = asyncio.create_task(hall.wait(hall.waiter("somebody", 60.0)))
    await asyncio.sleep(0.05)
    yield hall
    hall.somebody.cancel()
    await asyncio.gather(hall.somebody, return_exceptions=True)
    await hall.room.stop()
    await redis.stop()
    await ear.stop()


async def test_a_place_that_comes_before_its_waiter_knows_that_it_waits(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t server")
    assert await hall.wait(hall.waiter("t")) == Place("server", held=True)
    assert hall.held == {"server": 1}


async def test_a_refusal_that_comes_before_its_waiter_knows(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t")
    with pytest.raises(NoPlace) as refused:
        await hall.wait(hall.waiter("t"))
    assert refused.value.code == "queue_full"


async def test_a_place_of_one_who_has_gone_is_given_back(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t server")
    hall.room.expect_no_more("t")
    await hall.tell("stranger server")
    assert hall.held == {"server": 0}


async def test_a_place_that_comes_as_its_waiter_goes_is_given_back(hall: Hall) -> None:
    waiting = asyncio.create_task(hall.wait(hall.waiter("t", 60.0)))
    await asyncio.sleep(0.05)
    hall.room._take("t", "server")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert hall.held == {"server": 0}
    assert "t" not in hall.room.left


async def test_places_that_come_after_all_have_gone_are_given_back(hall: Hall) -> None:
    """Until Redis hears that they have, which may take a heartbeat."""
    hall.somebody.cancel()
    await asyncio.gather(hall.somebody, return_exceptions=True)
    await hall.tell("somebody server")
    await asyncio.sleep(LISTEN)
    await hall.tell("another server")
    assert hall.held == {"server": 0}


async def moved(hall: Hall) -> None:
    """The fleet has."""
    hall.room.look_again_soon()
    await asyncio.sleep(0.05)


async def test_who_waits_waits_for_the_servers_that_there_are_now(hall: Hall) -> None:
    waiter = hall.waiter("t", 5.0, wanted("server"), wanted("other", "server"), wanted("other"))
    waiting = asyncio.create_task(hall.wait(waiter))
    await asyncio.sleep(0.05)
    await moved(hall)
    assert hall.told == 0, "nothing that concerns it"
    for number, servers in ((1, {"other", "server"}), (2, {"other"})):
        await moved(hall)
        assert hall.told == number
        assert {name for name, _ in waiter.wanted.servers} == servers
    await hall.tell("t server")
    assert hall.held == {"server": 0}, "it has gone"
    await hall.tell("t other")
    assert await waiting == Place("other", held=True)
    assert hall.room.left == ["t"], "Redis may have forgotten it before it heard of the other servers"


@pytest.mark.parametrize(
    ("planned", "comes"), [(None, None), (wanted("free", limit=0), Place("free", held=False))], ids=["none", "free"]
)
async def test_who_need_wait_no_longer_goes_at_once(hall: Hall, planned: Wanted | None, comes: Place | None) -> None:
    waiting = asyncio.create_task(hall.wait(hall.waiter("t", 5.0, planned)))
    await asyncio.sleep(0.05)
    await moved(hall)
    assert waiting.done()
    assert await waiting == comes
    assert hall.room.left == ["t"]


async def test_a_fleet_that_moves_before_its_waiter_knows_that_it_waits(hall: Hall) -> None:
    asked_at = hall.room.looks
    await moved(hall)
    assert await hall.room.wait(hall.worker, hall.waiter("t", 5.0, None), asked_at) is None


async def test_all_refusals_tell_position_and_expected_wait(hall: Hall) -> None:
    hall.room.expect("t")
    await hall.tell("t")
    refusals = [too_many_wait(Estimate(3, 7_000), is_full=is_full) for is_full in (True, False)]
    for ticket in ("t", "u"):
        with pytest.raises(NoPlace) as refused:
            await hall.wait(hall.waiter(ticket, 0.05))
        refusals.append(refused.value)
    assert [refusal.code for refusal in refusals] == ["queue_full", "queue_too_long", "queue_full", "queue_timeout"]
    for refusal in refusals:
        headers = dict(refusal.headers())
        assert (headers[b"retry-after"], headers[b"x-citadel-queue-position"]) == (b"7", b"3")
        assert "position was 3, with an expected wait of about 7 s" in refusal.message
