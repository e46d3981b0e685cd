"""The script that decides, against a model of what it must decide: any admissions, releases, workers, times.

It runs in a database of its own in the run's Redis, by a clock that the test moves.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from apps.gateway.limits.scripts import ADMIT
from tests.instance import Instance

DATABASE = 9
MINUTE = 60_000
LEASE = 4_000
A_SECOND = 1_000
CLIENTS = ("ann", "bob")
WORKERS = ("w1", "w2", "w3")
ADMITTED, GLOBAL, PER_MINUTE, AT_ONCE = range(4)
CLOCK = "{redis.call('GET', 'second'), redis.call('GET', 'microsecond')}"

Asked = tuple[str, int, int]


class World:
    """The script in Redis, and the same decisions by sentences of the contract."""

    def __init__(self, state: redis.Redis, per_minute: int, burst: int) -> None:
        self._state = state
        self._script = ADMIT.text.replace("redis.call('TIME')", CLOCK)
        assert CLOCK in self._script
        self._global = (per_minute, burst)
        self.now = 1_700_000_000_000
        self._names = dict.fromkeys(WORKERS, 0)
        self._heard: dict[str, int] = {}
        self._running: dict[str, Counter[str]] = defaultdict(Counter)
        self._admitted: dict[str, list[int]] = defaultdict(list)
        self._tokens, self._filled_at = Fraction(burst), self.now

    def call(self, worker: str, released: Counter[str], asked: list[Asked]) -> None:
        """One call of a worker, which must be told what the contract says."""
        name = self._name(worker)
        known = name in self._heard
        self._heard[name] = self.now
        for client, count in released.items():
            self._running[name][client] -= count
        expected = [self._decide(name, *question) for question in asked]
        arguments: list[str | int] = [name, LEASE, *self._global, 0, len(released)]
        for client, count in released.items():
            arguments += [client, count]
        arguments += [0, 0, len(asked)]
        for question in asked:
            arguments += [*question, 0]
        self._state.mset({"second": self.now // 1000, "microsecond": self.now % 1000 * 1000})
        told_known, *verdicts = self._state.eval(self._script, 0, *arguments)  # type: ignore[misc, union-attr]
        assert bool(told_known) == known
        for question, (verdict, remaining, reset, retry, *_), must_be in zip(asked, verdicts, expected, strict=True):
            assert (verdict, remaining) == must_be[:2], question
            assert must_be[2] <= retry < must_be[2] + 1, question
            assert reset == (MINUTE if verdict == ADMITTED else retry if verdict == PER_MINUTE else 0), question

    def held_by(self, worker: str) -> Counter[str]:
        """What that worker may release."""
        return +self._running[self._name(worker)]

    def _name(self, worker: str) -> str:
        """A worker that was silent for a lease comes back under another name, as another."""
        name = f"{worker}/{self._names[worker]}"
        if name in self._heard and self.now - self._heard[name] >= LEASE:
            self._names[worker] += 1
            name = f"{worker}/{self._names[worker]}"
        return name

    def _at_once(self, client: str) -> int:
        alive = [name for name, heard in self._heard.items() if self.now - heard < LEASE]
        return sum(self._running[name][client] for name in alive)

    def _decide(self, name: str, client: str, limit: int, concurrent: int) -> tuple[int, int, Fraction | int]:
        """Verdict, requests left, and the milliseconds after which the limit that refused will let one in."""
        per_minute, burst = self._global
        per_minute *= bool(burst)
        if per_minute:
            gained = Fraction(max(0, self.now - self._filled_at) * per_minute, MINUTE)
            self._tokens, self._filled_at = min(Fraction(burst), self._tokens + gained), self.now
        window = [time for time in self._admitted[client] if self.now - MINUTE < time <= self.now]
        left = max(0, limit - len(window))
        if limit and not left:
            return PER_MINUTE, 0, window[-limit] + MINUTE - self.now
        if concurrent and self._at_once(client) >= concurrent:
            return AT_ONCE, left, A_SECOND
        if per_minute and self._tokens < 1:
            return GLOBAL, left, (1 - self._tokens) * MINUTE / per_minute
        self._tokens -= bool(per_minute)
        if limit:
            self._admitted[client].append(self.now)
        if concurrent:
            self._running[name][client] += 1
        return ADMITTED, left - 1 if limit else -1, 0


@pytest.fixture(scope="module")
def state(citadel: Instance) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(re.sub(r"db=\d+", f"db={DATABASE}", citadel.redis_url)) as state:
        assert state.get_connection_kwargs()["db"] == DATABASE, "the running Citadel's own data would be lost"
        yield state
        state.flushdb()


limits = st.sampled_from([0, 1, 2, 3, 5])
questions = st.lists(st.tuples(st.sampled_from(CLIENTS), limits, limits), max_size=8)
pauses = st.sampled_from([0, 1, 500, 1_000, 3_999, 4_000, 20_000, 55_999, 56_000, 59_999, 60_000, 60_001])
steps = st.lists(
    st.tuples(pauses, st.sampled_from(WORKERS), st.lists(st.sampled_from(CLIENTS), max_size=4), questions), max_size=25
)


# Rates of which a millisecond brings a fraction that binary numbers hold: the model is exact, so must the script be.
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.sampled_from([(0, 100), (60_000, 0), (60_000, 3), (7_500, 4), (30_000, 1)]), steps=steps)
@example(
    rate=(0, 1),
    steps=[(0, "w1", [], [("ann", 2, 0)] * 3), (59_999, "w2", [], [("ann", 2, 0)]), (1, "w1", [], [("ann", 2, 0)] * 3)],
)
@example(
    rate=(0, 1),
    steps=[(0, "w1", [], [("ann", 0, 2)] * 2), (3_999, "w2", [], [("ann", 0, 2)]), (1, "w2", [], [("ann", 0, 2)] * 3)],
)
def test_the_script_decides_as_the_contract_says(
    state: redis.Redis, rate: tuple[int, int], steps: list[tuple[int, str, list[str], list[Asked]]]
) -> None:
    state.flushdb()
    world = World(state, *rate)
    for pause, worker, releases, asked in steps:
        world.now += pause
        world.call(worker, Counter(releases) & world.held_by(worker), asked)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 6),
    arrivals=st.lists(st.tuples(st.integers(0, 25_000), st.integers(1, 8)), min_size=1, max_size=30),
)
def test_no_60_seconds_ever_see_more_than_n(state: redis.Redis, limit: int, arrivals: list[tuple[int, int]]) -> None:
    """The promise itself, apart from any model: and whoever is refused would have made it one too many."""
    state.flushdb()
    world = World(state, 0, 1)
    admitted: list[int] = []
    for pause, count in arrivals:
        world.now += pause
        for _ in range(count):
            before = len(world._admitted["ann"])
            world.call("w1", Counter(), [("ann", limit, 0)])
            in_window = [time for time in admitted if time > world.now - MINUTE]
            if len(world._admitted["ann"]) > before:
                admitted.append(world.now)
                assert len(in_window) < limit
            else:
                assert len(in_window) == limit


def test_the_default_bucket_gives_its_burst_and_then_a_thousand_a_minute(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    world.call("w1", Counter(), [("ann", 0, 0)] * 150)
    admitted, at = 0, world.now
    while world.now < at + MINUTE:
        world.now += 60  # in which exactly one comes back
        before = world._tokens
        world.call("w1", Counter(), [("ann", 0, 0)])
        admitted += world._tokens >= before
    assert admitted == 1000


@pytest.mark.parametrize("seconds", [1, 30, 59, 3600])
def test_a_clock_that_is_set_back_shuts_nobody_out(state: redis.Redis, seconds: int) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    for _ in range(3):
        world.call("w1", Counter(), [("ann", 5, 5)] * 2)
        world.now += 20_000
    world.now -= 1000 * seconds
    world.call("w1", Counter({"ann": 5}), [("ann", 5, 5)] * 6)


def test_what_nobody_needs_any_more_is_forgotten(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    world.call("w1", Counter(), [("ann", 5, 5)] * 3)
    assert 60 <= state.ttl("limits:window:ann") <= 61
    assert 0 < state.ttl("limits:global") <= 120
    assert state.ttl("limits:running:ann") >= 3600  # as long as a stream may run
    world.call("w1", Counter({"ann": 3}), [])
    assert not state.exists("limits:running:ann")
