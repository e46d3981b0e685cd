"""What a worker's router keeps from one request to the next, and when it forgets it."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.fleet import Fleet, Holding, Model, ModelClass, Server
from apps.orchestration.health.conditions import Load, Record
from apps.orchestration.health.pace import WARM, Key
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.explain import told
from apps.orchestration.routing.plan import Needs
from apps.orchestration.routing.router import USUAL_HOLD, Router
from citadel.sections import RoutingSection
from tests.held_up import HELD_UP

SERVERS = tuple(Server(f"s{number}", f"http://s{number}", "openai") for number in range(2))


def router_with(
    records: Mapping[str, Record],
    loads: Mapping[str, Load],
    routing: RoutingSection | None = None,
    *,
    number: int = 0,
    workers: int = 1,
) -> tuple[Router, Any]:
    homes = SimpleNamespace(
        known={}, settled=lambda _model: {}, remember=lambda *_: None, forget_all_but=lambda _: None
    )
    watch: Any = SimpleNamespace(number=number, records=records, loads=loads, clock_ms=0.0, homes=homes)
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    return Router(standings, watch, routing or RoutingSection(), workers), watch


def shares(router: Router, times: int = 600) -> Counter[str]:
    return Counter(router.plan(Model("m", SERVERS)).order[0].server_id for _ in range(times))


def test_new_loads_and_records_count_from_the_next_request_on() -> None:
    router, watch = router_with({}, {})
    assert shares(router) == {"s0": 300, "s1": 300}
    watch.records = {"s1": Record(status="degraded")}
    assert shares(router) == {"s0": 400, "s1": 200}
    watch.records, watch.loads = {}, {"s0": Load(queue=3)}
    assert shares(router) == {"s0": 200, "s1": 400}
    watch.loads = {}
    assert shares(router) == {"s0": 300, "s1": 300}


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.integers(0, 100), st.sampled_from([2, 4]))
def test_workers_that_begin_together_are_not_all_ahead_by_the_same_server(
    counts: list[int], begun_before: int, workers: int
) -> None:
    """Half and half, to one, however many requests come to each."""
    total: Counter[str] = Counter()
    for number, count in enumerate(counts[:workers], begun_before):
        router, _ = router_with({}, {}, number=number, workers=workers)
        total.update(shares(router, count))
    assert abs(total["s0"] - total["s1"]) <= 2


def test_they_are_not_in_step_either_after_a_server_was_out() -> None:
    firsts = []
    for number in range(4):
        router, watch = router_with({}, {}, number=number, workers=4)
        model = Model("m", SERVERS)
        shares(router, 7 + number)
        for records, now in (({"s1": Record(status="unhealthy")}, 1.0), ({}, 3.0)):
            watch.records = records
            router._standings.follow(dict.fromkeys(records, ""), now, now)
            plan = router.plan(model)
        firsts.append(plan.order[0].server_id)
    assert Counter(firsts) == {"s0": 2, "s1": 2}


@pytest.mark.parametrize(("budget", "slow"), [(0.05, 6), (0.1, 13), (0.0, 24)])
def test_a_slow_server_gets_what_the_budget_for_backup_requests_pays_for(budget: float, slow: int) -> None:
    router, _ = router_with({}, {}, RoutingSection(hedge_budget=budget))
    for name, seconds in (("s0", 1.0), ("s1", 20.0)):
        for _ in range(2 * WARM):
            router.paces[Key("m", name, False)].answered(seconds, 0.0)
    model = Model("m", SERVERS, model_class=ModelClass("c", hedge_ms=0))
    assert Counter(router.plan(model).order[0].server_id for _ in range(206))["s1"] == pytest.approx(slow, abs=1)


def test_who_fits_a_small_context_alone_is_found_after_and_before_any_other_request() -> None:
    router, _ = router_with({}, {})
    holdings = {"s0": Holding(context_length=100), "s1": Holding(context_length=4000)}
    model = Model("m", SERVERS, context_length=100, holdings=holdings)
    for tokens, fit in ((50, {"s0", "s1"}), (1000, {"s1"}), (100, {"s0", "s1"}), (5000, set())):
        plan = router.plan(model, Needs(tokens=tokens))
        assert {server.server_id for server in plan.order} == fit


def test_a_class_may_get_another_strategy_at_any_moment() -> None:
    router, _ = router_with({}, {})
    servers = tuple(Server(f"s{number}", f"http://s{number}", "openai", weight=9 - 4 * number) for number in range(3))
    for number in range(60):
        strategy = ("weighted_round_robin", "affinity", "least_busy", "peak_ewma")[number // 3 % 4]
        model = Model("m", servers, model_class=ModelClass("c", strategy=strategy))
        for affinity in (None, number << 40):
            order = router.plan(model, Needs(affinity=affinity)).order
            assert {server.server_id for server in order} == {"s0", "s1", "s2"}


def test_a_record_says_why_a_models_only_server_was_not_asked_as_usual() -> None:
    router, watch = router_with({}, {})
    model = Model("m", SERVERS[:1])
    assert told(router.plan(model), model) is None, "there was nothing to decide"
    watch.records = {"s0": Record(status="unhealthy", source="traffic", reason="status_500")}
    router._standings.put_out("s0", time.monotonic() - 60)
    assert told(router.plan(model), model) == {
        "strategy": "",
        "order": [],
        "trial": "s0",
        "dropped": {"s0": "unhealthy, says traffic: status_500"},
    }
    assert told(router.plan(drained := Model("m", (replace(SERVERS[0], state="draining"),))), drained) == {
        "strategy": "",
        "order": [],
        "dropped": {"s0": "draining"},
    }


def test_a_change_of_something_else_begins_no_turns_anew() -> None:
    """A fleet is read again for each change of a key as well; one of its servers drains."""
    router, _ = router_with({}, {})
    drains = Server("s2", "http://s2", "openai", state="draining")
    model = Model("m", (*SERVERS, drains))
    fleet = Fleet(1, {"m": model}, {}, {server.server_id: server for server in model.servers})
    served: Counter[str] = Counter()
    for _ in range(60):
        router.follow(fleet)
        served[router.plan(model).order[0].server_id] += 1
    assert served == {"s0": 30, "s1": 30}
    gone = {server.server_id: server for server in SERVERS[:1]}
    router.follow(Fleet(2, {"m": model}, {}, gone))
    assert not router._cursors, "nothing is remembered of who has gone"


def test_nothing_is_remembered_of_models_that_have_left() -> None:
    """As adapters do that are loaded under a new name for each job, while their server stays."""
    router, _ = router_with({}, {})
    servers = {server.server_id: server for server in SERVERS}
    stays = {"m": Model("m", (replace(SERVERS[0], state="draining"), SERVERS[1]))}
    for number in range(50):
        adapter = Model(f"adapter-{number}", SERVERS[:1])
        router.follow(Fleet(1, {**stays, adapter.name: adapter}, {}, servers))
        for name, server in (("m", "s0"), ("m", "s1"), (adapter.name, "s0")):
            router.paces[Key(name, server, True)].answered(1.0, 0.0)
            router.held(name, 7.0)
    assert {key.model for key, _ in router.paces.items()} == router._holds.keys() == {"m", "adapter-49"}
    router.follow(Fleet(2, {"m": Model("m", SERVERS[:1])}, {}, servers))
    assert [key for key, _ in router.paces.items()] == [Key("m", "s0", True)]
    assert list(router.paces.of("m", True)) == ["s0"]
    assert (router.usual_hold("m"), router.usual_hold("adapter-49")) == (7.0, USUAL_HOLD)


ABILITIES = st.sampled_from([None, frozenset({"chat"}), frozenset({"chat", "tools"}), frozenset({"chat", "vision"})])
HOLDINGS = st.builds(Holding, capabilities=ABILITIES, context_length=st.sampled_from([None, 100, 1000]))
SNAPSHOTS = st.builds(
    Model,
    name=st.just("m"),
    servers=st.lists(st.sampled_from(["active", "disabled", "draining"]), min_size=2, max_size=4).map(
        lambda states: tuple(Server(f"s{n}", f"http://s{n}", "openai", state=state) for n, state in enumerate(states))
    ),
    holdings=st.fixed_dictionaries({}, optional={f"s{number}": HOLDINGS for number in range(4)}),
    model_class=st.none() | st.builds(ModelClass, st.just("c"), st.just(frozenset({"s0", "s2"})), st.booleans()),
)
NEEDS = st.builds(
    Needs, capabilities=st.sets(st.sampled_from(["tools", "vision"])).map(frozenset), tokens=st.sampled_from([0, 500])
)


@given(st.lists(st.tuples(st.none() | SNAPSHOTS, NEEDS), min_size=2, max_size=12))
def test_what_is_kept_is_what_would_be_found(steps: list[tuple[Model | None, Needs]]) -> None:
    """Whatever requests came before, and whatever the fleet looked like then."""
    router, _ = router_with({}, {})
    model = Model("m", SERVERS)
    for snapshot, needs in steps:
        if snapshot is not None:
            smallest = [one.context_length for one in snapshot.holdings.values() if one.context_length]
            model = replace(snapshot, context_length=min(smallest, default=None))
        plan, anew = router.plan(model, needs), router_with({}, {})[0].plan(model, needs)
        assert ({*plan.order}, {*plan.dropped}, plan.lacking) == ({*anew.order}, {*anew.dropped}, anew.lacking)


KINDS = (Needs(), Needs(frozenset({"tools"})), Needs(frozenset({"vision"})), Needs(tokens=500), Needs(tokens=2000))


@given(
    st.sampled_from(["weighted_round_robin", "least_busy", "peak_ewma"]),
    st.lists(st.sampled_from(KINDS), max_size=60),
)
def test_each_kind_of_requests_has_turns_of_its_own(strategy: str, wanted: list[Needs]) -> None:
    """Whatever comes between: who alone does tools gets no plain request more or less for it."""
    holdings = {
        "s0": Holding(frozenset({"chat", "tools"}), 100),
        "s1": Holding(frozenset({"chat", "tools", "vision"}), 1000),
        "s2": Holding(frozenset({"chat", "vision"}), 1000),
        "s3": Holding(frozenset({"chat"}), 4000),
    }
    servers = tuple(Server(f"s{n}", f"http://s{n}", "openai", weight=n + 1) for n in range(4))
    model = Model("m", servers, context_length=100, holdings=holdings)
    routing = RoutingSection(strategy=strategy)  # type: ignore[arg-type]
    mixed = router_with({}, {}, routing)[0]
    alone = {kind: router_with({}, {}, routing)[0] for kind in KINDS}
    for kind in wanted:
        assert mixed.plan(model, kind).order == alone[kind].plan(model, kind).order


def test_what_runs_says_how_long_a_place_is_held_until_something_has_ended() -> None:
    router, _ = router_with({}, {})
    assert router.usual_hold("m") == USUAL_HOLD
    now = time.monotonic()
    for request, age in (("first", 20.0), ("second", 5.0)):
        router.takes("m", request, now - age)
    assert 20 <= router.usual_hold("m") < 20 + HELD_UP + 1
    assert router.usual_hold("other") == USUAL_HOLD
    router.leaves("m", "first")
    assert 5 <= router.usual_hold("m") < 5 + HELD_UP + 1, "it failed, which says nothing"
    router.held("m", 7.0)
    assert router.usual_hold("m") == 7.0
    router.takes("m", "third", now - 100)
    assert router.usual_hold("m") == 7.0, "one alone that takes long is not the usual"


def test_nothing_is_kept_of_who_has_left() -> None:
    router, _ = router_with({}, {})
    router.takes("m", "request", time.monotonic() - 20)
    router.leaves("m", "request")
    assert router.usual_hold("m") == USUAL_HOLD
