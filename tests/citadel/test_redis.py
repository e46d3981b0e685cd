"""The connection on a request's path: what counts as Redis's silence, and how much is asked in one call."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
import uvloop

from citadel import redis as module
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


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The events that the connection tells the log."""
    events: list[str] = []

    def note(_logger: object, _method: str, line: structlog.typing.EventDict) -> str:
        events.append(line["event"])
        raise structlog.DropEvent

    monkeypatch.setattr(module, "log", structlog.wrap_logger(structlog.PrintLogger(), processors=[note]))
    return events


async def test_that_it_is_away_is_said_once_and_not_at_each_attempt(tmp_path: Path, said: list[str]) -> None:
    where = tmp_path / "redis"
    link = Redis(f"unix://{where}", timeout=TIMEOUT, connect_timeout=1, name="test")
    await link.start()
    await asyncio.sleep(2)  # in which it tries six times
    assert said == ["redis_unavailable"]
    async with await asyncio.start_unix_server(_pong, where):
        await asyncio.sleep(1.5)
        assert said == ["redis_unavailable", "redis_connected"]
        await link.stop()


async def test_one_that_greets_and_does_no_more_is_left_alone_more_and_more(tmp_path: Path, said: list[str]) -> None:
    """Each time a request would wait for it in vain."""
    greeted = 0

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        await _pong(reader, writer)

    where = tmp_path / "redis"
    async with await asyncio.start_unix_server(greet, where):
        link = Redis(f"unix://{where}", timeout=0.05, connect_timeout=1, name="test")
        await link.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            link.tell("SET", "a", 1)
            await asyncio.sleep(0.01)
        await link.stop()
    assert 3 <= greeted <= 8
    assert said == ["redis_connected", "redis_unavailable", "redis_connected"]


async def _pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the greeting alone."""
    await reader.readuntil(b"PING\r\n")
    writer.write(b"+PONG\r\n")
    await reader.read(-1)
    writer.close()
