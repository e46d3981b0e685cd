"""A worker's copy of the keys, against what happens while it is read: on the real database, with answers held back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from apps.gateway.access.keys.holder import Row, holder
from apps.gateway.access.keys.shape import mint
from apps.gateway.access.keys.table import KeyTable
from citadel.caller import Caller
from citadel.config import load
from citadel.errors import Unauthenticated
from citadel.permissions import within
from citadel.sections import ClientLimit
from tests.instance import Instance


class SlowAnswers:
    """A pool whose answers travel: before the n-th is given on, `afterwards[n]` is awaited."""

    def __init__(self, pool: "AsyncConnectionPool[Any]"):
        self._pool = pool
        self.afterwards: list[Callable[[], Any]] = []

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:
        async with self._pool.connection(timeout) as connection:
            yield connection
        if self.afterwards:
            await self.afterwards.pop(0)()


@pytest.fixture
async def pool(citadel: Instance) -> AsyncIterator[SlowAnswers]:
    async with AsyncConnectionPool(citadel.database_url, min_size=2, open=False) as real:
        yield SlowAnswers(real)


@pytest.fixture
def table(pool: SlowAnswers) -> KeyTable:
    return KeyTable(load().secret, ClientLimit(), pool)  # type: ignore[arg-type]  # has what it uses of a pool


async def _issued(citadel: Instance) -> bytes:
    return (await asyncio.to_thread(citadel.key)).encode()


async def test_a_key_made_while_the_table_is_read_is_good_at_once(
    citadel: Instance, pool: SlowAnswers, table: KeyTable
) -> None:
    made = asyncio.Event()

    async def release() -> None:
        made.set()

    pool.afterwards = [made.wait, release]
    loading = asyncio.create_task(table.load())
    await asyncio.sleep(0.2)  # it has read all keys, and not told yet
    key = await _issued(citadel)
    assert (await table.look_up(key)).name == "test"
    await loading


async def test_a_key_revoked_while_it_is_looked_up_does_not_stay(
    citadel: Instance, pool: SlowAnswers, table: KeyTable
) -> None:
    from apps.gateway.models import Key

    key = await _issued(citadel)
    reloaded = asyncio.Event()
    pool.afterwards = [reloaded.wait]
    asked = asyncio.create_task(table.look_up(key))
    await asyncio.sleep(0.2)  # the database has said yes, and it isn't told yet
    key_id = key.decode().split("_")[1]
    await asyncio.to_thread(Key.objects.filter(key_id=key_id).update, revoked=datetime.now(UTC))
    await table.load()
    reloaded.set()
    await asked
    assert table.find(key) is None
    with pytest.raises(Unauthenticated):
        await table.look_up(key)


async def test_who_asks_in_vain_keeps_no_good_key_from_being_learnt(
    citadel: Instance, pool: SlowAnswers, table: KeyTable
) -> None:
    """Nor does it cost more than the question: the table stays the one that it was."""
    await table.load()
    key, beside = await _issued(citadel), await _issued(citadel)
    over = asyncio.Event()

    async def others_first() -> None:
        with pytest.raises(Unauthenticated):
            await table.look_up(mint()[0].encode())
        assert table._callers is known
        assert (await table.look_up(beside)).name == "test"
        over.set()

    known, pool.afterwards = table._callers, [others_first]
    assert (await table.look_up(key)).name == "test"
    assert over.is_set()
    assert table.find(key)
    assert table.find(beside)


async def test_a_key_that_nobody_made_is_asked_for_once_a_second(pool: SlowAnswers, table: KeyTable) -> None:
    questions: list[bytes] = []

    async def count() -> None:
        questions.append(key)

    key = mint()[0].encode()
    pool.afterwards = [count] * 5
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await table.look_up(key)
    assert len(questions) == 1


def test_a_limit_is_a_key_s_own_beyond_what_all_have() -> None:
    """Else an owner whose key has none of its own would lift the limits of classes by giving what all have."""

    def held(requests: int | None, tokens: int | None = None) -> Caller:
        row = Row(
            "k", "k", "t", "owner", None, requests, tokens, None, None, "high", None, None, None, None, None, None
        )
        return holder(row, ClientLimit())

    assert not any(held(requests).own_limits for requests in (None, 1, 60))
    assert {held(requests).own_limits for requests in (0, 61)} == {frozenset({"requests"})}
    assert not any(held(None, tokens).own_limits for tokens in (0, 5)), "where all have none nothing is beyond it"
    assert within(held(60), held(None)) and within(held(61), held(100))
    assert within(held(60, 5), held(None)) and not within(held(None), held(None, 5))
    assert not within(held(61), held(None))
