"""The script that holds places for workloads, against a model of it, by a clock that the test moves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from apps.gateway.limits.scripts import IN_USE
from apps.gateway.workloads import FULL, HELD, SCRIPT, TAKEN, TOO_MANY
from tests.gateway.limits.test_admit_script import CLOCK
from tests.instance import Instance

DATABASE = 6
LEASE = 600_000
"""By the clock of the test, in which no other time passes: Redis itself would forget by its own."""
MOST = 3
COMPLEXITY = 2.5
QUOTAS: dict[str, tuple[tuple[str, int], ...]] = {"ann": (("ann", 2), ("team:red", 3)), "bob": (("team:red", 3),)}
"""Of each caller: whose they are, and how many requests they allow at once."""
LIMITS = {"a": 1, "b": 2, "free": 0}
IDS = ["w1", "w2", "w3"]


@dataclass
class Known:
    """A workload as it should be."""

    caller: str
    server: str
    ends: int


class World:
    """The script in Redis, and the same decisions by sentences of the contract."""

    def __init__(self, state: redis.Redis) -> None:
        self.state = state
        self.now = 1_700_000_000_000
        self.works: dict[tuple[str, str], Known] = {}
        """By caller and id."""
        self.used: dict[str, int] = dict.fromkeys(LIMITS, 0)
        """Places that the worker has taken over, by server."""
        self.runs: dict[str, int] = {}
        """Requests that run, by whose they are."""

    def call(self, *arguments: object, script: str = SCRIPT.text) -> list[bytes]:
        self.state.mset({"second": self.now // 1000, "microsecond": self.now % 1000 * 1000})
        self.state.zadd("limits:workers", {"web": self.now + 60_000})
        text = script.replace("redis.call('TIME')", CLOCK)
        return self.state.eval(text, 0, *arguments)  # type: ignore[no-any-return]

    def wait(self, milliseconds: int) -> None:
        """The time passes; Redis's own expiry goes by the real clock, so ended records are taken away here."""
        self.now += milliseconds
        for (caller, name), work in list(self.works.items()):
            if work.ends <= self.now:
                del self.works[caller, name]
                self.state.delete(f"limits:workload:{caller}/{name}")

    def taken(self, server: str) -> int:
        return sum(work.server == server for work in self.works.values()) + self.used[server]

    def has_place(self, server: str) -> bool:
        return not LIMITS[server] or self.taken(server) < LIMITS[server]

    def full_one(self, caller: str) -> int | None:
        """Which of a caller's quotas has no more; -1 where it holds as many as anybody may."""
        if sum(one.caller == caller for one in self.works.values()) >= MOST:
            return -1
        for number, (holder, at_once) in enumerate(QUOTAS[caller]):
            counted = sum(holder in dict(QUOTAS[work.caller]) for work in self.works.values())
            if counted + self.runs.get(holder, 0) >= at_once:
                return number
        return None

    def run(self, holder: str) -> None:
        """A request more runs."""
        self.state.hincrby(f"limits:running:{holder}", "web", 1)
        self.runs[holder] = self.runs.get(holder, 0) + 1

    def hold(self, name: str, caller: str, servers: list[str]) -> None:
        flat = [part for server in servers for part in (server, LIMITS[server], 100)]
        quotas = [len(QUOTAS[caller]), *(part for quota in QUOTAS[caller] for part in quota)]
        asked = (name, caller, "m", 1, COMPLEXITY, MOST, LEASE, "{}", *quotas, len(servers), *flat)
        full = self.full_one(caller)
        verdict, *more = self.call("hold", *asked)
        work, free = self.works.get((caller, name)), next(filter(self.has_place, servers), None)
        if work:
            assert self.call("hold", name, caller, "other", *asked[3:]) == [TAKEN]
            if work.server not in servers and free:
                work.server = free
            assert (verdict, more[0].decode(), int(more[4])) == (HELD, work.server, work.ends)
        elif full is not None:
            ends = [one.ends - self.now for one in self.works.values() if one.caller == caller]
            assert (verdict, more) == (TOO_MANY, [full, min(ends, default=1000)])
        elif free is None:
            assert verdict == FULL
        else:
            self.works[caller, name] = Known(caller, free, self.now + LEASE)
            assert (verdict, more[0].decode(), int(more[4])) == (HELD, free, self.now + LEASE)
            assert more[1] == (b"1" if LIMITS[free] else b"0")

    def use(self, name: str, caller: str) -> None:
        record, work = self.call("use", name, caller, "m", "web"), self.works.pop((caller, name), None)
        if work:
            assert record[0].decode() == work.server
            self.used[work.server] += bool(LIMITS[work.server])
        else:
            assert record == []

    def release(self, name: str, caller: str, model: str) -> None:
        record, work = self.call("release", name, caller, model), self.works.get((caller, name))
        if work and model in ("", "m"):
            assert record[0].decode() == work.server
            del self.works[caller, name]
        else:
            assert record == []

    def move(self, name: str, caller: str, source: str, servers: list[str]) -> None:
        flat = [part for server in servers for part in (server, LIMITS[server], 100)]
        moved = self.call("move", f"{caller}/{name}", source, "{}", len(servers), *flat)
        work = self.works.get((caller, name))
        free = next(filter(self.has_place, servers), None)
        assert moved == int(work is not None and work.server == source and free is not None)
        if moved and work and free:
            work.server = free

    def check(self) -> None:
        """What is counted is what is held, and what is listed as well."""
        *counts, waiting = self.call("m", "a", "b", script=IN_USE.text)
        assert [*counts, waiting] == [self.taken("a"), self.taken("b"), 0]
        found = {server: self.call("stranded", server, "m", 100) for server in LIMITS}
        assert all(set(flat[1::2]) <= {str(COMPLEXITY).encode()} for flat in found.values())
        listed = {(name.decode(), server) for server, flat in found.items() for name in flat[::2]}
        assert listed == {(f"{caller}/{name}", work.server) for (caller, name), work in self.works.items()}
        for id_ in IDS:
            holders = {holder.decode() for holder in self.call("holders", id_)}
            assert holders == {caller for caller, name in self.works if name == id_}
        assert {f"{server} m" for _, server in listed} <= {shelf.decode() for shelf in self.call("shelves")}
        assert self.call("stranded", "free", "other", 100) == []


@pytest.fixture(scope="module")
def state(citadel: Instance) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(re.sub(r"db=\d+", f"db={DATABASE}", citadel.redis_url)) as client:
        assert client.get_connection_kwargs()["db"] == DATABASE, "the running Citadel's own data would be lost"
        yield client
        client.flushdb()


NAMES, CALLERS = st.sampled_from(IDS), st.sampled_from(["ann", "bob"])
ORDERS = st.lists(st.sampled_from(list(LIMITS)), unique=True, max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("hold"), NAMES, CALLERS, ORDERS),
    st.tuples(st.just("use"), NAMES, CALLERS),
    st.tuples(st.just("release"), NAMES, CALLERS, st.sampled_from(["m", "other", ""])),
    st.tuples(st.just("move"), NAMES, CALLERS, st.sampled_from(list(LIMITS)), ORDERS),
    st.tuples(st.just("run"), st.sampled_from(["ann", "team:red"])),
    st.tuples(st.just("wait"), st.integers(1, LEASE)),
)


@example(steps=[("hold", "w1", "ann", ["a"]), ("wait", LEASE), ("hold", "w1", "ann", ["b"])])
@given(steps=st.lists(STEPS, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_holds_what_it_should(state: redis.Redis, steps: list[tuple[object, ...]]) -> None:
    state.flushdb()
    world = World(state)
    for what, *arguments in steps:
        if what == "move" and arguments[2] in arguments[3]:  # type: ignore[operator]
            arguments[3].remove(arguments[2])  # type: ignore[attr-defined]
        getattr(world, str(what))(*arguments)
        if what != "wait":  # to look takes the dead away
            world.check()
