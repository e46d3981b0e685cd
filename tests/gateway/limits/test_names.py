"""The names under which a worker's places are counted: given up in doubt, and swept up once it is dead."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
import redis

from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.scripts import ADMIT, IN_USE, SWEEP
from apps.gateway.limits.waiting import Wanted
from apps.gateway.limits.worker import HEARTBEAT
from apps.orchestration.fleet import Model
from citadel.caller import STRANGER
from citadel.redis import Redis, RedisUnavailable
from citadel.sections import LimitsSection
from tests.gateway.limits.limiters import limiter_of
from tests.gateway.limits.test_admit_script import CLOCK
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.redis_database import redis_database

DATABASE, SWEPT = 14, 15
WANTED = Wanted("m", "t", 1, (("s", 4),), 10, 5.0, 1.0)
MODEL = Model("m", ())
NO_GLOBAL = LimitsSection.model_validate({"global": {"requests_per_minute": 0}})


@pytest.fixture
async def state(citadel: Instance) -> AsyncIterator[Redis]:
    async with redis_database(citadel, DATABASE) as state:
        yield state


@pytest.fixture
async def limiter(citadel: Instance, state: Redis) -> AsyncIterator[Limiter]:
    """Of one worker of two."""
    async with limiter_of(citadel, state, DATABASE, NO_GLOBAL, 2) as limiter:
        yield limiter


async def places(state: Redis) -> int:
    [taken, _] = await state.script(IN_USE, ("m", "s"))
    return int(taken)


async def beats(count: float = 2.0) -> None:
    await asyncio.sleep(HEARTBEAT * count + 0.3)


async def test_a_doubt_ends_with_the_next_name(limiter: Limiter, state: Redis) -> None:
    limiter.start()
    await limiter.admit(STRANGER, MODEL, WANTED)
    before = limiter._worker.name
    limiter.doubt()
    await beats()
    named = limiter._worker.name
    assert named != before
    await beats(4)
    assert limiter._worker.name == named, "nothing is in doubt any more, though a request runs"
    assert await places(state) == 1


async def test_what_is_told_under_a_new_name_counts_from_that_moment(limiter: Limiter, state: Redis) -> None:
    await limiter.admit(STRANGER, MODEL, WANTED)
    await limiter._worker.take_new_name()
    assert await places(state) == 1
    assert await places(state) == 1, "and who asked has not taken it for a dead one's"
    assert await state.call("TTL", "limits:running:@s") > 3600


async def test_requests_that_come_meanwhile_put_nothing_in_doubt(limiter: Limiter, state: Redis) -> None:
    names, over = [limiter._worker.name], asyncio.Event()

    async def come_and_go() -> None:
        while not over.is_set():
            place = (await limiter.admit(STRANGER, MODEL, WANTED)).place
            assert place
            if limiter._worker.name not in names:
                names.append(limiter._worker.name)
            await asyncio.sleep(0)
            limiter.leave(place)

    limiter.start()
    coming = [asyncio.create_task(come_and_go()) for _ in range(3)]
    await beats()
    limiter.doubt()
    await beats(4)
    over.set()
    await asyncio.gather(*coming)
    assert len(names) == 2
    await beats()
    assert await places(state) == 0


@pytest.fixture
async def gate(state: Redis, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Until it is set nobody hears what the scripts have said."""
    gate, script = asyncio.Event(), state.script

    async def held_back(*asked: Any) -> Any:
        told = await script(*asked)
        await gate.wait()
        return told

    monkeypatch.setattr(state, "script", held_back)
    return gate


async def seen(state: Redis, pattern: str) -> list[str]:
    """The keys, once there are any."""
    for _ in range(100):
        if keys := await state.call("KEYS", pattern):
            return [key.decode() for key in keys]
        await asyncio.sleep(0.02)
    raise AssertionError(f"no {pattern} in 2 s")


async def rename_before_it_is_heard(limiter: Limiter, gate: asyncio.Event) -> None:
    """Begins to change the name, and only then lets it hear what Redis has said to the old one."""
    renamed = asyncio.create_task(limiter._worker.take_new_name())
    await asyncio.sleep(0.1)
    gate.set()
    await renamed


async def test_what_is_admitted_while_the_name_changes_counts(
    limiter: Limiter, state: Redis, gate: asyncio.Event
) -> None:
    admitted = asyncio.create_task(limiter.admit(STRANGER, MODEL, WANTED))
    await seen(state, "limits:running:@s")
    await rename_before_it_is_heard(limiter, gate)
    await admitted
    assert (await places(state), limiter.running) == (1, 1)


async def test_who_is_to_wait_under_a_name_that_is_given_up_asks_anew(
    limiter: Limiter, state: Redis, gate: asyncio.Event
) -> None:
    await fill(state)
    waits = asyncio.create_task(limiter.find_place(WANTED))
    [before] = await seen(state, "limits:ticket:*")
    await rename_before_it_is_heard(limiter, gate)
    limiter.start()
    await beats()
    [now] = await seen(state, "limits:ticket:*")
    assert limiter._worker.name in now
    assert limiter._worker.name not in before
    waits.cancel()


async def test_a_place_for_who_went_before_it_knew_that_it_was_to_wait_is_given_back(
    limiter: Limiter, state: Redis, gate: asyncio.Event
) -> None:
    await fill(state)
    waits = asyncio.create_task(limiter.find_place(WANTED))
    [ticket] = await seen(state, "limits:ticket:*")
    waits.cancel()
    gate.set()
    await asyncio.gather(waits, return_exceptions=True)
    await state.call("HSET", "limits:running:@s", limiter._worker.name, 1)  # it has its turn all the same
    await state.call("RPUSH", f"limits:grants:{limiter._worker.name}", f"{ticket.removeprefix('limits:ticket:')} s")
    limiter.start()
    await beats()
    await state.call("HDEL", "limits:running:@s", "another")
    assert (await places(state), limiter.running) == (0, 0)


async def test_a_name_that_could_not_be_told_is_dead_all_the_same(
    limiter: Limiter, state: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limiter.admit(STRANGER, MODEL, WANTED)
    with monkeypatch.context() as broken:
        broken.setattr(state, "call", Mock(side_effect=RedisUnavailable("test")))
        with pytest.raises(RedisUnavailable):
            await limiter._worker.take_new_name()
    limiter.start()
    limiter.doubt()
    await beats()
    assert (await places(state), limiter.running) == (1, 1)


async def test_under_a_new_name_it_hears_at_once(limiter: Limiter, state: Redis) -> None:
    await fill(state)
    waits = asyncio.create_task(limiter.find_place(WANTED))
    await waiting(limiter, state)
    await limiter._worker.take_new_name()
    await waiting(limiter, state)
    granted = f"limits:grants:{limiter._worker.name}"
    await state.call("RPUSH", granted, "nobody s")
    await asyncio.sleep(1.0)
    assert not await state.call("LLEN", granted), "the question under the old name would have been open for 2 s"
    waits.cancel()


async def waiting(limiter: Limiter, state: Redis) -> str:
    """Who waits, and knows it."""
    [ticket] = await seen(state, f"limits:ticket:{limiter._worker.name}*")
    for _ in range(100):
        if limiter._room.is_waited_in:
            break
        await asyncio.sleep(0.02)
    return ticket.removeprefix("limits:ticket:")


async def test_a_worker_that_was_taken_for_dead_hears_of_it_from_a_release(limiter: Limiter, state: Redis) -> None:
    limiter.start()
    first = (await limiter.admit(STRANGER, MODEL, WANTED)).place
    await limiter.admit(STRANGER, MODEL, WANTED)
    assert first
    await taken_for_dead(limiter, state)
    limiter.leave(first)
    await beats()
    assert await places(state) == 1, "the other one runs still"


async def taken_for_dead(limiter: Limiter, state: Redis) -> None:
    """By all others, while it stands still."""
    dead = [key for key in await state.call("KEYS", "limits:*") if b"ticket" in key or b"line" in key]
    dead += [b"limits:running:@s", b"limits:room:m", b"limits:waits:s", b"limits:waited"]
    await state.call("ZREM", "limits:workers", limiter._worker.name)
    await state.call("DEL", *dead)


FULL = 4


async def fill(state: Redis) -> None:
    """Another worker, which lives on, has all places."""
    await state.call("ZADD", "limits:workers", 4_000_000_000_000, "another")
    await state.call("HSET", "limits:running:@s", "another", FULL)


async def test_who_waits_at_a_worker_that_was_taken_for_dead_asks_anew(limiter: Limiter, state: Redis) -> None:
    await fill(state)
    limiter.start()
    waits = asyncio.create_task(limiter.find_place(WANTED))
    await waiting(limiter, state)
    await taken_for_dead(limiter, state)
    place = await asyncio.wait_for(waits, 3 + HELD_UP)
    assert place
    assert place.held


async def test_a_place_that_is_granted_to_a_name_in_the_moment_in_which_it_is_given_up_is_void(
    limiter: Limiter, state: Redis
) -> None:
    await fill(state)
    waits = asyncio.create_task(limiter.find_place(WANTED))
    ticket = await waiting(limiter, state)
    granted = state.call("RPUSH", f"limits:grants:{limiter._worker.name}", f"{ticket} s")
    await limiter._worker.take_new_name()
    await granted
    await asyncio.sleep(0.2)
    assert limiter.running == 0
    assert not waits.done(), "its server is full still"
    await state.call("HDEL", "limits:running:@s", "another")
    limiter.start()
    place = await asyncio.wait_for(waits, 3 + HELD_UP)
    assert place
    assert (await places(state), limiter.running) == (1, 1)


class Swept:
    """Workers that hold places and what sweeps after them, by a clock that the test moves, two keys at a time."""

    def __init__(self, state: redis.Redis) -> None:
        self.state = state
        self.now = 1_700_000_000_000
        self.steps = 0
        self._sweep = SWEEP.text.replace("redis.call('TIME')", CLOCK).replace("STEP = 1000", "STEP = 2")
        self._sweep = self._sweep.replace("PATIENCE = 500", "PATIENCE = 60000")
        assert {"STEP = 2", "PATIENCE = 60000"} <= set(re.findall(r"(?:STEP|PATIENCE) = \d+", self._sweep))
        self._admit = ADMIT.text.replace("redis.call('TIME')", CLOCK)

    def hold(self, worker: str, *servers: str) -> None:
        asked = itertools.chain(*((-1, 0, 1, "t", "m", "team", 1, 9, 1, 1, 0, server, 9) for server in servers))
        self._eval(self._admit, [worker, 4_000, *(0,) * 9, len(servers), *asked])

    def step(self, cursor: Any = 0, moment: int = 0) -> tuple[bytes, int]:
        self.steps += 1
        cursor, moment = self._eval(self._sweep, [cursor, moment])
        return cursor, moment

    def sweep(self) -> None:
        self.steps = 0
        cursor, moment = self.step()
        while cursor != b"0":
            cursor, moment = self.step(cursor, moment)

    def holders(self) -> dict[str, set[str]]:
        """By server who stands there."""
        prefix = "limits:running:@"
        found = {key.decode(): self.state.hkeys(key) for key in self.state.keys(f"{prefix}*")}
        return {key.removeprefix(prefix): {name.decode() for name in names} for key, names in found.items()}

    def workers(self) -> set[str]:
        return {name.decode() for name in self.state.zrange("limits:workers", 0, -1)}

    def _eval(self, text: str, arguments: Sequence[Any]) -> Any:
        self.state.mset({"second": self.now // 1000, "microsecond": self.now % 1000 * 1000})
        return self.state.eval(text, 0, *arguments)


@pytest.fixture
def swept(citadel: Instance) -> Iterator[Swept]:
    url = re.sub(r"db=\d+", f"db={SWEPT}", citadel.redis_url)
    with redis.Redis.from_url(url) as state:
        assert state.get_connection_kwargs()["db"] == SWEPT, "the running Citadel's own data would be lost"
        state.flushdb()
        yield Swept(state)
        state.flushdb()


SERVERS = [f"s{number}" for number in range(20)]


def test_what_the_dead_held_goes_and_what_the_living_hold_stays(swept: Swept) -> None:
    swept.hold("dead", *SERVERS)
    swept.now += 3_000
    swept.hold("living", "s0", "s1")
    swept.now += 1_001
    swept.sweep()
    assert swept.holders() == {"s0": {"living"}, "s1": {"living"}}
    assert swept.workers() == {"living"}
    assert swept.steps > 1
    swept.sweep()
    assert swept.steps == 1, "there is nobody to sweep up after"


def test_a_workload_is_swept_when_its_lease_has_ended(swept: Swept) -> None:
    swept.hold("living", "s1")
    swept.state.zadd("limits:workers", {"work:a:1": swept.now + 2_000, "work:b:1": swept.now + 9_000})
    swept.state.hset("limits:running:@s0", mapping={"work:a:1": 1, "work:b:1": 1})
    swept.now += 2_001
    swept.sweep()
    assert swept.holders() == {"s0": {"work:b:1"}, "s1": {"living"}}


def test_one_sweeps_at_a_time_and_another_goes_on_when_it_dies(swept: Swept) -> None:
    swept.hold("dead", *SERVERS)
    swept.now += 4_001
    cursor, moment = swept.step()
    assert cursor != b"0"
    assert swept.step() == (b"0", 0), "somebody sweeps already"
    swept.step(cursor, moment)
    assert 0 < swept.state.pttl("limits:sweeping") <= 60_000
    swept.state.delete("limits:sweeping")  # as it goes by itself when nobody sweeps on
    swept.sweep()
    assert swept.holders() == {}


def test_who_comes_back_while_others_sweep_stays(swept: Swept) -> None:
    swept.hold("stopped", *SERVERS)
    swept.now += 4_001
    cursor, moment = swept.step()
    swept.hold("stopped", "s3")
    while cursor != b"0":
        cursor, moment = swept.step(cursor, moment)
    assert swept.workers() == {"stopped"}
    assert "stopped" in swept.holders()["s3"]


def test_who_dies_while_others_are_swept_is_swept_by_the_next(swept: Swept) -> None:
    swept.hold("dead", *SERVERS)
    swept.now += 3_000
    swept.hold("dying", *SERVERS)
    swept.now += 1_001
    cursor, moment = swept.step()
    swept.now += 3_000
    while cursor != b"0":
        cursor, moment = swept.step(cursor, moment)
    assert swept.workers() == {"dying"}
    swept.sweep()
    assert (swept.workers(), swept.holders()) == (set(), {})
