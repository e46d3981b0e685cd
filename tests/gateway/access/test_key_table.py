"""A worker's copy of the keys, against what happens while it is read: on the real database, with answers held back."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from apps.gateway.access.keys.holder import Row, holder
from apps.gateway.access.keys.shape import mint
from apps.gateway.access.keys.table import KeyTable
from apps.gateway.limits.quotas import Quotas
from apps.orchestration.fleet import Model, ModelClass
from citadel.caller import Caller
from citadel.config import load
from citadel.errors import Unauthenticated
from citadel.sections import ClientLimit, LimitsSection
from tests.gateway.access.giving import within
from tests.gateway.access.test_authentication import altered
from tests.held_up import slowness
from tests.instance import Instance

MANY = 10_000
FEW_MS = 0.005
"""Seconds of CPU for which a load may hold others up on a usual machine; in one go it takes ten times as long."""


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
    await table.load()
    key, beside = await _issued(citadel), await _issued(citadel)
    over = asyncio.Event()

    async def others_first() -> None:
        with pytest.raises(Unauthenticated):
            await table.look_up(mint()[0].encode())
        assert (await table.look_up(beside)).name == "test"
        over.set()

    pool.afterwards = [others_first]
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


async def test_a_key_whose_checksum_is_wrong_is_not_asked_for(pool: SlowAnswers, table: KeyTable) -> None:
    pool.afterwards = [lambda: pytest.fail("it was looked up")]
    with pytest.raises(Unauthenticated):
        await table.look_up(altered(mint()[0]).encode())


async def test_of_two_loads_the_older_brings_no_revoked_key_back(
    citadel: Instance, pool: SlowAnswers, table: KeyTable
) -> None:
    from apps.gateway.models import Key

    key, read = await _issued(citadel), asyncio.Event()
    pool.afterwards = [read.wait]
    older = asyncio.create_task(table.load())
    await asyncio.sleep(0.2)  # it has read that the key is in force, and goes by that when it is told
    await asyncio.to_thread(Key.objects.filter(key_id=key.decode().split("_")[1]).update, revoked=datetime.now(UTC))
    newer = asyncio.create_task(table.load())
    await asyncio.sleep(0.2)
    read.set()
    await asyncio.gather(older, newer)
    assert table.find(key) is None


@pytest.fixture
async def thousands(citadel: Instance) -> AsyncIterator["AsyncConnectionPool[Any]"]:
    """A connection on which there are these keys, in the stead of those that there are for all others."""

    async def make(connection: Any) -> None:
        await connection.execute("CREATE TEMP TABLE gateway_key (LIKE gateway_key INCLUDING DEFAULTS)")
        await connection.execute(
            "INSERT INTO gateway_key (id, key_id, digest, name, team_id, role, certificates, created) "
            "SELECT n, 'k' || n, sha256(n::text::bytea), 'before', (SELECT min(id) FROM gateway_team), 'developer', "
            "jsonb_build_array('c' || n), now() FROM generate_series(1, %s) n",
            (MANY,),
        )

    options = {"autocommit": True}
    async with AsyncConnectionPool(
        citadel.database_url, kwargs=options, min_size=1, max_size=1, configure=make, open=False
    ) as pool:
        yield pool


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is looked for: what a run of tests has in memory takes longer than all that is measured."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
async def test_loads_of_thousands_of_keys_hold_nobody_up(thousands: "AsyncConnectionPool[Any]") -> None:
    """And nobody sees a table of which only a part is new."""
    table = KeyTable(load().secret, ClientLimit(), thousands)
    told: set[tuple[str, ...]] = set()

    def look() -> None:
        keys = (table.named(f"k{number}") for number in (1, MANY))
        told.add(tuple(key.holders[0].name for key in keys if key))

    first, same = await _pause(table.load(), look), await _pause(table.load(), look)
    async with thousands.connection() as connection:
        await connection.execute("UPDATE gateway_key SET name = 'after'")
    other = await _pause(table.load(), look)
    assert told == {(), ("before", "before"), ("after", "after")}
    assert max(first, same, other) < FEW_MS * slowness()


async def test_of_a_load_only_what_has_changed_is_new(thousands: "AsyncConnectionPool[Any]") -> None:
    table = KeyTable(load().secret, ClientLimit(), thousands)
    await table.load()
    before = [table.named(f"k{number}") for number in range(1, MANY + 1)]
    async with thousands.connection() as connection:
        await connection.execute("UPDATE gateway_key SET role = 'viewer', certificates = '[]' WHERE key_id = 'k7'")
        await connection.execute("UPDATE gateway_key SET revoked = now() WHERE key_id = 'k8'")
    await table.load()
    now = [table.named(f"k{number}") for number in range(1, MANY + 1)]
    new = {number: (a, b) for number, (a, b) in enumerate(zip(before, now, strict=True), 1) if a is not b}
    assert list(new) == [7, 8], [(a and a.row, b and b.row) for a, b in new.values()]
    assert now[6] and now[6].holders[0].role == "viewer"
    assert now[7] is None
    assert [await table.certified(f"c{number}") is not None for number in (6, 7, 8, 9)] == [True, False, False, True]


async def _pause(work: Coroutine[Any, Any, None], look: Callable[[], None]) -> float:
    """For how many seconds of CPU others had to wait at the most, while that was done; each time they look."""
    task, longest, last = asyncio.create_task(work), 0.0, time.thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
        look()
    await task
    return longest


def test_a_limit_is_a_key_s_own_beyond_what_all_have() -> None:
    """Else an owner whose key has none of its own would lift the limits of classes by giving what all have."""

    assert not any(_held(requests).own_limits for requests in (None, 1, 60))
    assert _held(61).own_limits == {"requests"}
    assert not _held(None, 5).own_limits, "where all have none no other number is beyond it"
    assert within(_held(60), _held(None)) and within(_held(61), _held(100))
    assert within(_held(60, 5), _held(None)) and not within(_held(None), _held(None, 5))
    assert not within(_held(61), _held(None))


@pytest.mark.parametrize("usual", [0, 60])
def test_nought_is_a_key_s_own_whatever_all_have(usual: int) -> None:
    """It lifts the limits of classes. A key that says nothing has these, where all have no limit of the kind too."""
    defaults = ClientLimit(requests_per_minute=usual)
    lifted, unsaid = _held(0, defaults=defaults), _held(None, defaults=defaults)
    assert lifted.own_limits == {"requests"} and not lifted.limits.requests
    assert not unsaid.own_limits and unsaid.limits.requests == usual
    assert within(lifted, lifted) and within(unsaid, lifted)
    assert not within(lifted, unsaid), "else an owner would lift by it what holds for its own key"
    heavy = Model("big", (), model_class=ModelClass("heavyweight"))
    limited = [
        [quota.holder for quota in Quotas(LimitsSection()).terms(caller, heavy).quotas if quota.requests]
        for caller in (lifted, unsaid)
    ]
    assert limited == [[], ["k", "k:heavyweight"] if usual else ["k:heavyweight"]]


def _held(requests: int | None, tokens: int | None = None, *, defaults: ClientLimit | None = None) -> Caller:
    row = Row("k", "k", "t", "owner", None, requests, tokens, None, None, "high", None, None, None, None, None, None)
    return holder(row, defaults or ClientLimit())
