"""FAULTS row 5: the Redis that four workers count in is killed, silent, or not there when they start.

Nobody who keeps to his limits notices; limits hold by each worker's share, and exactly once it is back.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from tests.faults.stores import (
    NORMAL_WITHIN,
    SETTINGS,
    OwnRedis,
    failed,
    four_on,
    granted,
    log_lines,
    p99,
    recorded_once,
    traffic,
    until_exact,
    until_ticking,
)
from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import WORKERS, Four
from tests.held_up import HELD_UP
from tests.instance import Instance, running

pytestmark = [pytest.mark.faults, pytest.mark.alone]

AWAY = 20.0
MEASURED = 12.0
"""Of these; in the rest others ask, more than they may."""
RATE = 45
LATER = 0.1 + HELD_UP
"""Seconds by which one request in a hundred may take longer."""
FEW, MANY = 2, 2 * WORKERS
"""Limits: less than one for each worker, and two."""
START_WITHIN = 240.0
"""Seconds; half a minute of them a Redis that is not there is waited for."""
SLOW = "slow_start 1500"
TOLD_WITHIN = 3.0
"""Seconds in which all say that Redis is away, each in a few lines; from then on they are quiet together."""


@pytest.fixture(autouse=True)
def case() -> None:
    """The run's own Citadel has no part in this."""


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    own = OwnRedis(tmp_path_factory.mktemp("redis"))
    own.start()
    yield own
    own.kill()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, own_redis: OwnRedis) -> Iterator[Elsewhere]:
    with on(own_redis, tmp_path_factory) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture
async def four(elsewhere: Elsewhere) -> AsyncIterator[Four]:
    async with four_on(elsewhere) as four:
        yield four


@contextmanager
def on(own: OwnRedis, folders: pytest.TempPathFactory) -> Iterator[Instance]:
    """A Citadel that is given the address of that Redis, for what it counts and for its cache."""
    addresses = {"REDIS_URL": own.url, "REDIS_CACHE_URL": own.url}
    with running(folders.mktemp("home"), {**SETTINGS, **addresses}, within=START_WITHIN) as citadel:
        yield citadel


class Limited:
    """Keys with limits that are fewer than the workers, and more; what they are granted while Redis is away."""

    def __init__(self, four: Four, model: str):
        self._four = four
        self._model = model
        self._slow = f"slow-{model}"
        four.server(self._slow).behave(SLOW)
        self._a_minute = {limit: four.elsewhere.key(requests_per_minute=limit) for limit in (FEW, MANY)}
        self._at_once = {limit: four.elsewhere.key(concurrent=limit) for limit in (FEW, MANY)}

    async def check_exact(self) -> None:
        """A whole window is used up."""
        for limit, key in self._a_minute.items():
            assert await granted(self._four, key, self._model, 5 * limit) == limit

    async def check_shares(self) -> None:
        """docs/limits.md: all workers together grant at most the limit, or one each; and no worker refuses it all."""

        async def check_a_minute(limit: int, key: str) -> None:
            found = [await granted(self._four, key, self._model, 4 * MANY) for _ in range(3)]
            assert limit <= sum(found) <= max(limit, WORKERS), found

        async def check_at_once(limit: int, key: str) -> None:
            assert 1 <= await granted(self._four, key, self._slow, 4 * MANY) <= max(limit, WORKERS)

        await asyncio.gather(
            *(check_a_minute(*one) for one in self._a_minute.items()),
            *(check_at_once(*one) for one in self._at_once.items()),
        )

    async def until_exact(self) -> float:
        """The seconds until limits hold exactly again; what a key is granted in the new window is bounded too."""
        took = await until_exact(self._four, self._model, self._slow)
        for limit, key in self._a_minute.items():
            assert await granted(self._four, key, self._model, 5 * limit) <= limit
        return took


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_redis_that_is_away_for_twenty_seconds(four: Four, own_redis: OwnRedis, model: str, how: str) -> None:
    citadel = four.citadel
    four.server(model)
    limited = Limited(four, model)
    async with four.asking() as asker:
        before = await traffic(asker, model, RATE, MEASURED)
        await limited.check_exact()
        written, begun = log_lines(citadel), time.monotonic()
        own_redis.kill() if how == "killed" else own_redis.pause(AWAY)
        meanwhile = asyncio.create_task(traffic(asker, model, RATE, MEASURED))
        await asyncio.sleep(TOLD_WITHIN)
        told = log_lines(citadel)
        during = await meanwhile
        await limited.check_shares()
        quiet = log_lines(citadel) - told
        assert own_redis.is_away()
        if how == "killed":
            own_redis.start()
        else:
            await asyncio.sleep(max(0.0, begun + AWAY - time.monotonic()))
        async with asyncio.timeout(NORMAL_WITHIN + HELD_UP):
            await until_ticking(citadel.redis_url)
        assert await limited.until_exact() <= NORMAL_WITHIN + HELD_UP
        lines, seconds = log_lines(citadel) - written, time.monotonic() - begun
        after = await traffic(asker, model, RATE, 5)
    for replies in (before, during, after):
        assert not failed(replies)
    assert p99(during) <= p99(before) + LATER, f"{p99(before):.3f} s before, {p99(during):.3f} s without Redis"
    assert quiet.total() <= AWAY - TOLD_WITHIN, quiet
    assert all(count <= seconds for count in lines.values()), lines
    recorded_once(citadel, [*before, *during, *after])


async def test_a_redis_that_is_not_there_when_citadel_starts(
    tmp_path_factory: pytest.TempPathFactory, model: str
) -> None:
    own = OwnRedis(tmp_path_factory.mktemp("absent"))
    with on(own, tmp_path_factory) as citadel, Elsewhere.on(citadel) as elsewhere:
        assert own.is_away()
        four = Four(citadel, elsewhere)
        with four.stack:
            four.server(model)
            limited = Limited(four, model)
            async with four.asking() as asker:
                warm = await traffic(asker, model, RATE, 5)
                told = log_lines(citadel)
                during = await traffic(asker, model, RATE, MEASURED)
                await limited.check_shares()
                quiet = log_lines(citadel) - told
                own.start()
                async with asyncio.timeout(NORMAL_WITHIN + HELD_UP):
                    await until_ticking(citadel.redis_url)
                assert await limited.until_exact() <= NORMAL_WITHIN + HELD_UP
                after = await traffic(asker, model, RATE, MEASURED)
        for replies in (warm, during, after):
            assert not failed(replies)
        assert p99(during) <= p99(after) + LATER
        assert quiet.total() <= AWAY, quiet
        recorded_once(citadel, [*warm, *during, *after])
        async with four_on(elsewhere):
            pass  # and nothing is held
    own.kill()


async def test_the_embedded_redis_is_started_anew_and_remembers(
    tmp_path_factory: pytest.TempPathFactory, model: str
) -> None:
    """Both, three times within seconds. What was counted a second before still counts."""
    home = tmp_path_factory.mktemp("embedded")
    with running(home, SETTINGS) as citadel, Elsewhere.on(citadel) as elsewhere:
        async with four_on(elsewhere) as four:
            four.server(model)
            limited, used = Limited(four, model), four.elsewhere.key(requests_per_minute=MANY)
            async with four.asking() as asker:
                before = await traffic(asker, model, RATE, 10)
                assert await granted(four, used, model, 2 * MANY) == MANY
                await asyncio.sleep(1.5)  # it writes down each second what it holds
                meanwhile = asyncio.create_task(traffic(asker, model, RATE, 10))
                for _ in range(3):
                    for name in ("redis", "redis-cache"):
                        os.kill(int((home / "run" / f"{name}.pid").read_text()), signal.SIGKILL)
                    await asyncio.sleep(2.5)
                assert await limited.until_exact() <= NORMAL_WITHIN + HELD_UP
                assert await granted(four, used, model, 2 * MANY) == 0
                during = await meanwhile
            assert not failed(before)
            assert not failed(during)
            assert p99(during) <= p99(before) + LATER
            recorded_once(citadel, [*before, *during])
