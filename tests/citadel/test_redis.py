"""The connection on a request's path: what counts as Redis's silence, and how much is asked in one call."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import uvloop

from citadel.gathering import MOST, Gathering
from citadel.redis import Redis
from tests.instance import Instance

TIMEOUT = 0.1


@pytest.fixture
async def connection(citadel: Instance) -> AsyncIterator[Redis]:
    link = Redis(citadel.redis_url, timeout=TIMEOUT, connect_timeout=5, name="test")
    await link.start()
    yield link
    await link.stop()


def test_a_worker_that_was_busy_does_not_take_that_for_silence(citadel: Instance) -> None:
    """In the workers' loop, which looks at its timers before it reads."""

    async def work() -> None:
        link = Redis(citadel.redis_url, timeout=TIMEOUT, connect_timeout=5, name="test")
        await link.start()
        for _ in range(5):
            await asyncio.sleep(0)
            time.sleep(2 * TIMEOUT)  # noqa: ASYNC251  # as a worker is held up that has much to read
            asked = link.call("PING")
            for _ in range(3):
                time.sleep(2 * TIMEOUT)  # noqa: ASYNC251
                await asyncio.sleep(0)
            assert await asked == b"PONG"
        assert link.available
        await link.stop()

    uvloop.run(work())


async def test_silence_is_told_in_time(connection: Redis) -> None:
    begun = time.monotonic()
    with pytest.raises(Exception, match="no answer within"):
        await connection.call("BLPOP", "nothing", 5)
    assert TIMEOUT <= time.monotonic() - begun < 5


async def test_many_questions_are_asked_in_calls_of_bounded_size() -> None:
    """In their order, and each gets its own answer."""
    calls = []

    async def double(questions: list[int]) -> list[int]:
        calls.append(len(questions))
        await asyncio.sleep(0)
        return [2 * question for question in questions]

    gathering = Gathering(double)
    count = 2 * MOST + 1
    assert await asyncio.gather(*(gathering.ask(number) for number in range(count))) == [2 * n for n in range(count)]
    assert calls == [MOST, MOST, 1]
