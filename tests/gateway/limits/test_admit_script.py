"""The script that decides, against a model of what it must decide: any quotas, admissions, releases, workers, times.

It runs in a database of its own in the run's Redis, by a clock that the test moves.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

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
HOLDERS = ("ann", "bob", "team:red")
WORKERS = ("w1", "w2", "w3")
PURSES = ("ann:day", "team:red:month")
ADMITTED, GLOBAL, PER_MINUTE, AT_ONCE, TOKENS, TOO_LARGE, SPENT, UNKNOWN_SPENT = 0, 1, 2, 3, 7, 8, 9, 10
CLOCK = "{redis.call('GET', 'second'), redis.call('GET', 'microsecond')}"


class Limit(NamedTuple):
    holder: str
    requests: int = 0
    tokens: int = 0
    at_once: int = 0


class Claimed(NamedTuple):
    purse: str
    limit: int
    amount: int


class Asked(NamedTuple):
    limits: tuple[Limit, ...]
    tokens: int = 0
    claims: tuple[Claimed, ...] = ()
    runs: bool = False
    """Whether it was admitted before, and claims more."""


class Decided(NamedTuple):
    verdict: int
    which: int
    retry: Fraction | int


class Reserved(NamedTuple):
    at: int
    ticket: str
    tokens: int


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
        self.admitted: dict[str, list[int]] = defaultdict(list)
        self.reserved: dict[str, list[Reserved]] = defaultdict(list)
        self.spent: dict[str, int] = {}
        """Of the purses that Redis knows."""
        self.tickets: list[tuple[str, Asked]] = []
        """Those that have reserved tokens."""
        self._count = 0
        self.bucket, self._filled_at = Fraction(burst), self.now

    def call(
        self,
        worker: str,
        released: Counter[str],
        asked: Sequence[Asked],
        settled: Sequence[tuple[int, int]] = (),
        charges: Sequence[tuple[str, int]] = (),
    ) -> list[Decided]:
        """One call of a worker, which must be told what the contract says. `settled`: which of the tickets, and the
        tokens that it has used; `charges`: what has been taken out of which purse.
        """
        name = self._name(worker)
        known = name in self._heard
        self._heard[name] = self.now
        self._fill()
        for holder, count in released.items():
            self._running[name][holder] -= count
        for purse, amount in charges:
            if purse in self.spent:
                self.spent[purse] += amount
        told_settled = [words for which, used in settled for words in self._settle(which, used)]
        tickets = [self._ticket() for _ in asked]
        expected = [self._decide(name, question, ticket) for question, ticket in zip(asked, tickets, strict=True)]
        arguments: list[str | int] = [name, LEASE, *self._global, 0, len(released)]
        for holder, count in released.items():
            arguments += [holder, count]
        arguments += [len(told_settled), *(word for words in told_settled for word in words)]
        arguments += [0, len(charges), *(word for charge in charges for word in charge)]
        arguments += [0, 0, len(asked)]
        for question, ticket in zip(asked, tickets, strict=True):
            arguments += [-1] if question.runs else [len(question.limits), question.tokens]
            arguments += [ticket] if question.tokens else []
            arguments += [word for limit in question.limits for word in limit]
            arguments += [len(question.claims), *(word for claim in question.claims for word in claim)]
            arguments.append(0)
        self._state.mset({"second": self.now // 1000, "microsecond": self.now % 1000 * 1000})
        told_known, *verdicts = self._state.eval(self._script, 0, *arguments)  # type: ignore[misc, union-attr]
        assert bool(told_known) == known
        for question, (verdict, which, retry, chosen, position, since, *left), (decided, is_left) in zip(
            asked, verdicts, expected, strict=True
        ):
            assert (verdict, which) == decided[:2], question
            assert decided.retry <= retry < decided.retry + 1, question
            assert (chosen, position, since) == (0 if verdict == ADMITTED else -1, 0, 0)
            assert left == is_left, question
        return [decided for decided, _ in expected]

    def tell(self, purse: str, spent: int) -> None:
        """A worker tells Redis what PostgreSQL knows."""
        if self._state.set(f"limits:spent:{purse}", spent, nx=True):
            self.spent[purse] = spent

    def held_by(self, worker: str) -> Counter[str]:
        """What that worker may release."""
        return +self._running[self._name(worker)]

    def _ticket(self) -> str:
        self._count += 1
        return f"t{self._count:06d}"

    def _name(self, worker: str) -> str:
        """A worker that was silent for a lease comes back under another name, as another."""
        name = f"{worker}/{self._names[worker]}"
        if name in self._heard and self.now - self._heard[name] >= LEASE:
            self._names[worker] += 1
            name = f"{worker}/{self._names[worker]}"
        return name

    def _at_once(self, holder: str) -> int:
        """What runs for it. Who was found silent once is forgotten, even by a clock that is set back."""
        for name, heard in self._heard.items():
            if self.now - heard >= LEASE:
                self._running[name].pop(holder, None)
        return sum(running[holder] for running in self._running.values())

    def _window(self, holder: str) -> list[int]:
        """What was admitted in the last 60 s. What a clock that was set back has yet to come to counts from now on."""
        kept = [min(time, self.now) for time in self.admitted[holder] if self.now - MINUTE < time]
        self.admitted[holder] = kept
        return kept

    def _purse(self, holder: str) -> list[Reserved]:
        """What is reserved, or used, by those that were admitted in the last 60 s, in their order; likewise."""
        kept = [one._replace(at=min(one.at, self.now)) for one in self.reserved[holder] if self.now - MINUTE < one.at]
        self.reserved[holder] = sorted(kept)
        return self.reserved[holder]

    def _settle(self, which: int, used: int) -> Iterator[tuple[str, str, int, int]]:
        """Each request once, as its worker does."""
        if not self.tickets:
            return
        ticket, question = self.tickets.pop(which % len(self.tickets))
        for limit in question.limits:
            if limit.tokens:
                purse = self._purse(limit.holder)
                if used > question.tokens:  # what is beyond counts from now on
                    purse.append(Reserved(self.now, f"{ticket}+", used - question.tokens))
                else:
                    purse[:] = [one._replace(tokens=used) if one.ticket == ticket else one for one in purse]
                    purse[:] = [one for one in purse if one.tokens]
                yield limit.holder, ticket, question.tokens, used

    def _look(self, limit: Limit, tokens: int) -> tuple[int, int]:
        """What one limit says: a verdict, and the milliseconds after which it will be another."""
        if limit.tokens and tokens > limit.tokens:
            return TOO_LARGE, 0
        window, found = self._window(limit.holder) if limit.requests else [], [(0, ADMITTED)]
        if limit.requests and len(window) >= limit.requests:
            found.append((window[-limit.requests] + MINUTE - self.now, PER_MINUTE))
        if limit.tokens and tokens:
            purse = self._purse(limit.holder)
            missing = sum(one.tokens for one in purse) + tokens - limit.tokens
            for one in purse if missing > 0 else ():
                missing -= one.tokens
                if missing <= 0:
                    found.append((one.at + MINUTE - self.now, TOKENS))
                    break
        retry, verdict = max(found, key=lambda one: one[0])
        if verdict == ADMITTED and limit.at_once and self._at_once(limit.holder) >= limit.at_once:
            return AT_ONCE, A_SECOND
        return verdict, retry

    def _fill(self) -> int:
        """Has the bucket gain what it has gained; requests a minute of all together, 0 where these are not limited."""
        per_minute, burst = self._global
        per_minute *= bool(burst)
        gained = Fraction(max(0, self.now - self._filled_at) * per_minute, MINUTE)
        self.bucket, self._filled_at = min(Fraction(burst), self.bucket + gained), self.now
        return per_minute

    def _decide(self, name: str, question: Asked, ticket: str) -> tuple[Decided, list[int]]:
        """The verdict, and what is left by each limit then."""
        per_minute = self._fill()
        for number, claim in enumerate(question.claims):
            if claim.purse not in self.spent:
                return Decided(UNKNOWN_SPENT, number, 0), [left for one in question.limits for left in self._left(one)]
            if self.spent[claim.purse] + self._at_once("$" + claim.purse) + claim.amount > claim.limit:
                return Decided(SPENT, number, 0), [left for one in question.limits for left in self._left(one)]
        if question.runs:
            self._admit(name, question, ticket, counts=False)
            return Decided(ADMITTED, -1, 0), []
        said = [self._look(limit, question.tokens) for limit in question.limits]
        decided = Decided(ADMITTED, -1, 0)
        never = [which for which, (verdict, _) in enumerate(said) if verdict == TOO_LARGE]
        if never:
            decided = Decided(TOO_LARGE, never[0], 0)
        elif any(verdict for verdict, _ in said):
            which = max(range(len(said)), key=lambda number: (said[number][1], -number))
            decided = Decided(said[which][0], which, said[which][1])
        elif per_minute and self.bucket < 1:
            decided = Decided(GLOBAL, -1, (1 - self.bucket) * MINUTE / per_minute)
        else:
            self._admit(name, question, ticket, bool(per_minute))
        return decided, [number for limit in question.limits for number in self._left(limit)]

    def _admit(self, name: str, question: Asked, ticket: str, counts: bool) -> None:
        self.bucket -= counts
        for limit in question.limits:
            if limit.requests:
                self.admitted[limit.holder].append(self.now)
            if limit.tokens and question.tokens:
                self._purse(limit.holder).append(Reserved(self.now, ticket, question.tokens))
            if limit.at_once:
                self._running[name][limit.holder] += 1
        for claim in question.claims:
            self._running[name]["$" + claim.purse] += claim.amount
        if question.tokens:
            self.tickets.append((ticket, question))

    def _left(self, limit: Limit) -> tuple[int, int, int]:
        requests = max(0, limit.requests - len(self._window(limit.holder))) if limit.requests else 0
        used = sum(one.tokens for one in self._purse(limit.holder)) if limit.tokens else 0
        tokens = max(0, limit.tokens - used) if limit.tokens else 0
        return requests, tokens, self._at_once(limit.holder) if limit.at_once else 0


@pytest.fixture(scope="module")
def state(citadel: Instance) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(re.sub(r"db=\d+", f"db={DATABASE}", citadel.redis_url)) as state:
        assert state.get_connection_kwargs()["db"] == DATABASE, "the running Citadel's own data would be lost"
        yield state
        state.flushdb()


def ann(requests: int = 0, at_once: int = 0, *, tokens: int = 0, needs: int = 0) -> Asked:
    """A request of a client that has one limit of each kind."""
    return Asked((Limit("ann", requests, tokens, at_once),), needs)


few = st.sampled_from([0, 1, 2, 3, 5])
sizes = st.sampled_from([0, 1, 40, 100, 101])


@st.composite
def questions(draw: st.DrawFn) -> Asked:
    holders = draw(st.lists(st.sampled_from(HOLDERS), unique=True, max_size=3))
    limits = tuple(Limit(holder, draw(few), draw(st.sampled_from([0, 100, 150])), draw(few)) for holder in holders)
    return Asked(limits, draw(sizes) if any(limit.tokens for limit in limits) else 0)


pauses = st.sampled_from([0, 1, 500, 1_000, 3_999, 4_000, 20_000, 55_999, 56_000, 59_999, 60_000, 60_001])
steps = st.lists(
    st.tuples(
        pauses | st.sampled_from([-1, -500, -30_000, -60_000, -86_400_000]),
        st.sampled_from(WORKERS),
        st.lists(st.sampled_from(HOLDERS), max_size=4),
        st.lists(questions(), max_size=8),
        st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0, 1, 60, 300])), max_size=3),
    ),
    max_size=25,
)


# Rates of which a millisecond brings a fraction that binary numbers hold: the model is exact, so must the script be.
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.sampled_from([(0, 100), (60_000, 0), (60_000, 3), (7_500, 4), (30_000, 1)]), steps=steps)
@example(
    rate=(0, 1),
    steps=[(0, "w1", [], [ann(2)] * 3, []), (59_999, "w2", [], [ann(2)], []), (1, "w1", [], [ann(2)] * 3, [])],
)
@example(
    rate=(0, 1),
    steps=[
        (0, "w1", [], [ann(0, 2)] * 2, []),
        (3_999, "w2", [], [ann(0, 2)], []),
        (1, "w2", [], [ann(0, 2)] * 3, []),
    ],
)
@example(
    rate=(0, 1),
    steps=[
        (0, "w1", [], [ann(tokens=100, needs=60)] * 2, []),
        (0, "w1", [], [ann(tokens=100, needs=60)] * 2, [(0, 40)]),
        (59_999, "w1", [], [ann(tokens=100, needs=100)], [(1, 300)]),
        (1, "w1", [], [ann(tokens=100, needs=100)], []),
        (59_999, "w1", [], [ann(tokens=100, needs=100)] * 2, []),
    ],
)
def test_the_script_decides_as_the_contract_says(
    state: redis.Redis,
    rate: tuple[int, int],
    steps: list[tuple[int, str, list[str], list[Asked], list[tuple[int, int]]]],
) -> None:
    state.flushdb()
    world = World(state, *rate)
    for pause, worker, releases, asked, settled in steps:
        world.now += pause
        world.call(worker, Counter(releases) & world.held_by(worker), asked, settled)


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
            [decided] = world.call("w1", Counter(), [ann(limit)])
            in_window = [time for time in admitted if time > world.now - MINUTE]
            if decided.verdict == ADMITTED:
                admitted.append(world.now)
                assert len(in_window) < limit
            else:
                assert len(in_window) == limit


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 25_000), st.integers(1, 100)), min_size=1, max_size=60),
)
def test_no_60_seconds_ever_see_more_tokens_than_n(state: redis.Redis, arrivals: list[tuple[int, int]]) -> None:
    state.flushdb()
    world = World(state, 0, 1)
    reserved: list[tuple[int, int]] = []
    for pause, needs in arrivals:
        world.now += pause
        [decided] = world.call("w1", Counter(), [ann(tokens=100, needs=needs)])
        in_window = sum(tokens for time, tokens in reserved if time > world.now - MINUTE)
        assert (decided.verdict == ADMITTED) == (in_window + needs <= 100)
        if decided.verdict == ADMITTED:
            reserved.append((world.now, needs))


claims = st.lists(
    st.builds(Claimed, st.sampled_from(PURSES), st.sampled_from([0, 5, 100]), st.integers(0, 40)),
    max_size=2,
    unique_by=lambda claim: claim.purse,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 3_999, 4_000]),
            st.sampled_from(WORKERS),
            st.sampled_from([None, *((purse, spent) for purse in PURSES for spent in (0, 60))]),
            st.sampled_from([None, *PURSES]),
            st.lists(st.tuples(st.sampled_from(PURSES), st.integers(0, 30)), max_size=2),
            st.lists(st.tuples(claims, st.booleans()), max_size=6),
        ),
        max_size=20,
    )
)
def test_no_more_is_let_in_than_a_budget_has_left(
    state: redis.Redis,
    steps: list[
        tuple[int, str, tuple[str, int] | None, str | None, list[tuple[str, int]], list[tuple[list[Claimed], bool]]]
    ],
) -> None:
    """What has been spent and what those that run may take, of workers that live, is never above the limit; what a
    worker runs comes back when it ends, and when it dies.
    """
    state.flushdb()
    world = World(state, 0, 1)
    for pause, worker, told, ended, charges, asked in steps:
        world.now += pause
        if told:
            world.tell(*told)
        held = world.held_by(worker)
        released = Counter({f"${ended}": held[f"${ended}"]}) if ended else Counter[str]()
        world.call(worker, released, [Asked((), 0, tuple(one), runs) for one, runs in asked], charges=charges)
        for purse, spent in world.spent.items():
            assert int(state.get(f"limits:spent:{purse}") or 0) == spent  # type: ignore[arg-type]


def test_what_a_budget_refuses_uses_up_nothing(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    asked = Asked((Limit("ann", 5, 100, 5),), 10, (Claimed("ann:day", 10**15, 600_000_000_000_000),))
    assert [decided.verdict for decided in world.call("w1", Counter(), [asked])] == [UNKNOWN_SPENT]
    world.tell("ann:day", 0)
    assert [decided.verdict for decided in world.call("w1", Counter(), [asked] * 2)] == [ADMITTED, SPENT]
    assert state.llen("limits:window:ann") == 1
    assert world.bucket == 99
    world.call("w1", Counter({"$ann:day": 600_000_000_000_000, "ann": 1}), [], charges=[("ann:day", 10**14 + 1)])
    assert state.get("limits:spent:ann:day") == b"100000000000001", "to the last billionth"
    assert not state.exists("limits:running:$ann:day")


@pytest.mark.parametrize("takes", [0, 30_000, 59_000, 61_000])
def test_what_is_used_beyond_a_reservation_counts_however_late_it_is_told(state: redis.Redis, takes: int) -> None:
    """Else requests that run for a minute could use any number of tokens, one after the other."""
    state.flushdb()
    world = World(state, 0, 1)
    asked = ann(tokens=1_100, needs=1_000)
    assert [decided.verdict for decided in world.call("w1", Counter(), [asked])] == [ADMITTED]
    world.now += takes
    [decided] = world.call("w1", Counter(), [asked], [(0, 50_000)])
    assert (decided.verdict, decided.retry) == (TOKENS, MINUTE)
    world.now += MINUTE - 1
    assert [decided.verdict for decided in world.call("w1", Counter(), [asked])] == [TOKENS]
    world.now += 1
    assert [decided.verdict for decided in world.call("w1", Counter(), [asked])] == [ADMITTED]


def test_what_one_limit_refuses_uses_up_none_of_another(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    own, team = Limit("ann", 5, 100, 5), Limit("team:red", 1, 100, 5)
    verdicts = [decided.verdict for decided in world.call("w1", Counter(), [Asked((own, team), 10)] * 4)]
    assert verdicts == [ADMITTED, PER_MINUTE, PER_MINUTE, PER_MINUTE]
    assert state.llen("limits:window:ann") == 1
    assert state.hget("limits:sizes:ann", "sum") == b"10"
    assert world.bucket == 99


def test_the_default_bucket_gives_its_burst_and_then_a_thousand_a_minute(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    world.call("w1", Counter(), [ann()] * 150)
    admitted, at = 0, world.now
    while world.now < at + MINUTE:
        world.now += 60  # in which exactly one comes back
        [decided] = world.call("w1", Counter(), [ann()])
        admitted += decided.verdict == ADMITTED
    assert admitted == 1000


@pytest.mark.parametrize("seconds", [1, 30, 59, 3600])
def test_a_clock_that_is_set_back_shuts_nobody_out(state: redis.Redis, seconds: int) -> None:
    """For longer than a minute: what was admitted before is then out of the window, wherever the clock was."""
    state.flushdb()
    world = World(state, 1000, 100)
    for _ in range(3):
        world.call("w1", Counter(), [ann(5, 5, tokens=100, needs=20)] * 2)
        world.now += 20_000
    world.now -= 1000 * seconds
    asked = [ann(5, 5, tokens=100, needs=20)] * 6
    decided = world.call("w1", Counter({"ann": 5}) & world.held_by("w1"), asked)
    assert all(0 <= one.retry <= MINUTE for one in decided)
    world.now += MINUTE
    decided = world.call("w1", Counter({"ann": 5}) & world.held_by("w1"), asked)
    assert [one.verdict for one in decided[:5]] == [ADMITTED] * 5


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 6),
    steps=st.lists(
        st.tuples(st.integers(0, 25_000), st.sampled_from([0, 0, 1, 20_000, 59_999, 3_600_000]), st.integers(1, 8)),
        min_size=1,
        max_size=30,
    ),
)
@example(limit=3, steps=[(0, 0, 3), (0, 1, 3), (59_999, 0, 3)])
@example(limit=3, steps=[(0, 0, 2), (20_000, 20_001, 2), (20_000, 3_600_000, 2), (20_000, 0, 2)])
def test_no_60_seconds_see_more_than_n_though_the_clock_is_set_back(
    state: redis.Redis, limit: int, steps: list[tuple[int, int, int]]
) -> None:
    """Seconds as they pass, whatever the clock says; of requests, and of the tokens that they have reserved."""
    state.flushdb()
    world, passed = World(state, 0, 1), 0
    admitted: dict[Asked, list[int]] = {ann(limit): [], ann(tokens=10 * limit, needs=10): []}
    for pause, back, count in steps:
        passed += pause
        world.now += pause - back
        for asked, times in admitted.items():
            decided = world.call("w1", Counter(), [asked] * count)
            assert all(0 <= one.retry <= MINUTE for one in decided)
            times += [passed for one in decided if one.verdict == ADMITTED]
            assert len([at for at in times if at > passed - MINUTE]) <= limit


def test_what_nobody_needs_any_more_is_forgotten(state: redis.Redis) -> None:
    state.flushdb()
    world = World(state, 1000, 100)
    world.call("w1", Counter(), [ann(5, 5, tokens=100, needs=20)] * 3)
    for kind in ("window", "tokens", "sizes"):
        assert 60 <= state.ttl(f"limits:{kind}:ann") <= 61
    assert 0 < state.ttl("limits:global") <= 120
    assert state.ttl("limits:running:ann") >= 3600  # as long as a stream may run
    world.call("w1", Counter({"ann": 3}), [], [(0, 0), (1, 0), (2, 0)])
    assert not state.exists("limits:running:ann")
    assert not state.exists("limits:tokens:ann")
