"""Plans, for any fleet and any trouble: who is asked, in which order, and why others are not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from apps.orchestration.fleet import Holding, Model, ModelClass, Server
from apps.orchestration.health.conditions import Load, Record
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.explain import explained
from apps.orchestration.routing.plan import HELPERS_REST, Needs, Plan, Sight, find_candidates, make_plan
from apps.orchestration.routing.strategies import STRATEGIES, Cursors

NOW = 1_000.0
ABILITIES = ("tools", "vision", "json_schema")
able = st.frozensets(st.sampled_from(ABILITIES))
names = st.sampled_from(["s0", "s1", "s2", "s3", "s4"])


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A model's servers, what they say of it, and perhaps its class."""
    servers = tuple(
        Server(
            f"s{number}",
            f"http://s{number}",
            "openai",
            draw(st.integers(1, 9)),
            draw(st.sampled_from(["active", "active", "active", "draining", "disabled", "pending"])),
            max_concurrent=draw(st.sampled_from([0, 0, 2])),
        )
        for number in range(draw(st.integers(1, 5)))
    )
    holdings = {
        server.server_id: Holding(draw(st.none() | able), draw(st.sampled_from([None, 100, 4096])))
        for server in servers
    }
    strategy = draw(st.sampled_from(["", *STRATEGIES]))
    model_class = ModelClass("c", draw(st.none() | st.frozensets(names)), draw(st.booleans()), None, strategy)
    return Model("m", servers, holdings=holdings, model_class=draw(st.none() | st.just(model_class)))


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    """What has happened to the servers."""
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    records, loads = {}, {}
    for server_id in ("s0", "s1", "s2", "s3", "s4"):
        out = draw(st.sampled_from([None, None, 0.0, 1.0, 5.0, 50.0]))
        if out is not None:  # seconds since it went out, and perhaps somebody tries it
            standings.failed(server_id, NOW - out, "refused")
            if draw(st.booleans()):
                standings.begin_trial(server_id, NOW - out)
        status = draw(st.sampled_from(["healthy", "degraded", "unhealthy"]))
        records[server_id] = Record(status=status, sources={"probe": {"status": status}})
        if status == "unhealthy":
            standings.put_out(server_id, NOW - (out or 0.0))
        loads[server_id] = draw(
            st.sampled_from([Load(), Load(models=()), Load(models=("m",)), Load(cpu=0.99, queue=3)])
        )
    busy = draw(st.dictionaries(names, st.integers(0, 9)))
    strategy = draw(st.sampled_from(list(STRATEGIES)))
    return Sight(standings, NOW, records, loads, in_flight=busy, strategy=strategy)


needs = st.builds(Needs, able, st.sampled_from([0, 50, 1000]), st.none() | st.integers(0, 2**64 - 1), st.booleans())


def is_able(model: Model, server: Server, wanted: Needs) -> bool:
    holding = model.holdings[server.server_id]
    fits = not holding.context_length or wanted.tokens <= holding.context_length
    return fits and (holding.capabilities is None or wanted.capabilities <= holding.capabilities)


@given(models(), sights(), needs)
def test_everybody_is_either_asked_once_or_dropped_once_with_a_reason(
    model: Model, sight: Sight, wanted: Needs
) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    asked = [server.server_id for server in plan.order]
    dropped = [one.server_id for one in plan.dropped]
    assert sorted(asked + dropped) == sorted(server.server_id for server in model.servers)
    assert all(one.reason for one in plan.dropped)


@given(models(), sights(), needs)
def test_nobody_is_asked_who_is_out_or_can_not(model: Model, sight: Sight, wanted: Needs) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    for server in plan.order:
        assert server.state == "active"
        assert sight.standings.in_rotation(server.server_id)
        assert is_able(model, server, wanted)
    if plan.trial:
        assert plan.trial.state == "active"
        assert is_able(model, plan.trial, wanted)
        assert not sight.standings.in_rotation(plan.trial.server_id)
        assert sight.standings.trial_due(plan.trial.server_id, NOW, lonely=not plan.order)


@given(models(), sights(), needs)
def test_who_fails_its_probes_is_tried_only_when_nobody_else_is_there(
    model: Model, sight: Sight, wanted: Needs
) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    if plan.trial and plan.order:
        assert sight.records[plan.trial.server_id].status != "unhealthy"


@given(models(), sights(), needs)
def test_a_classs_own_servers_come_first_and_others_only_where_they_may_help(
    model: Model, sight: Sight, wanted: Needs
) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    if model.model_class is None or model.model_class.own is None:
        return
    foreign = [server.server_id not in model.model_class.own for server in plan.order]
    assert foreign == sorted(foreign)
    if plan.trial and not all(foreign):
        is_own = plan.trial.server_id in model.model_class.own
        rested = sight.standings.trial_due(plan.trial.server_id, NOW - HELPERS_REST)
        own = [server.server_id for server in plan.order if server.server_id in model.model_class.own]
        needed = all(sight.standings.pauses.is_paused(server_id, model.name, NOW) for server_id in own)
        assert is_own or rested or needed, "others are tried rarely while nobody needs them"
    told = {one.server_id for one in plan.dropped if one.reason == "not of class c"}
    may = {s.server_id for s in model.servers if s.state == "active" and is_able(model, s, wanted)}
    if model.model_class.fallback:
        assert not told
    else:
        assert not any(foreign)
        assert told == may - model.model_class.own


@given(models(), sights(), needs)
def test_who_has_the_model_in_memory_comes_first(model: Model, sight: Sight, wanted: Needs) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    own = model.model_class.own if model.model_class else None
    must_load = [sight.loads[server.server_id].models == () for server in plan.order]
    ranks = [
        (own is not None and server.server_id not in own, cold)
        for server, cold in zip(plan.order, must_load, strict=True)
    ]
    assert ranks == sorted(ranks), "of the class's own servers, and of the others"
    candidates = find_candidates(model, sight, wanted)
    told = {row["server_id"]: row["must_load_the_model"] for row in explained(plan, candidates, model)["order"]}
    assert [told[server.server_id] for server in plan.order] == must_load, "also where all of them must"


@given(models(), sights(), needs)
def test_an_empty_plan_says_when_to_come_back_or_what_is_lacking(model: Model, sight: Sight, wanted: Needs) -> None:
    plan, _ = make_plan(model, sight, {}, wanted)
    if plan.order:
        assert plan.retry_after == 0
        assert not plan.lacking
    else:
        assert 1 <= plan.retry_after <= 30
        active = [server for server in model.servers if server.state == "active"]
        back = [server for server in model.servers if server.state in ("active", "draining")]
        nobody_can = bool(active) and not any(is_able(model, server, wanted) for server in back)
        assert bool(plan.lacking) == nobody_can, "one that drains may come back: who asks again then is served"


@given(models(), sights(), needs, st.dictionaries(names | st.just("gone"), st.integers(-9, 9)))
@example(
    Model("m", (Server("s0", "http://s0", "openai"), Server("s1", "http://s1", "openai"))),
    Sight(Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0), NOW, strategy="affinity"),
    Needs(affinity=1),
    {"s0": -9},
)
def test_it_is_a_function(model: Model, sight: Sight, wanted: Needs, cursors: dict[str, int]) -> None:
    """Nothing that comes in is changed, and the same comes out again."""
    before: tuple[Mapping[str, Any], str] = (dict(cursors), repr(sight))
    first = make_plan(model, sight, cursors, wanted)
    assert make_plan(model, sight, cursors, wanted) == first
    assert (cursors, repr(sight)) == before


@given(models(), sights(), needs, st.integers(0, 30))
def test_the_order_is_whole_whatever_went_before(model: Model, sight: Sight, wanted: Needs, times: int) -> None:
    cursors: Cursors = {}
    plans: list[Plan] = []
    for _ in range(times):
        plan, cursors = make_plan(model, sight, cursors, wanted)
        plans.append(plan)
    assert len({frozenset(server.server_id for server in plan.order) for plan in plans}) <= 1


@given(models(), sights(), needs)
def test_a_draining_server_changes_nothing_but_its_own_place(model: Model, sight: Sight, wanted: Needs) -> None:
    drained = replace(model, servers=tuple(replace(server, state="draining") for server in model.servers))
    plan, _ = make_plan(drained, sight, {}, wanted)
    assert plan.order == ()
    assert plan.trial is None
    assert {one.reason for one in plan.dropped} == {"draining"}


def with_own(own: str, *others: str, fallback: bool = True) -> Model:
    servers = tuple(Server(name, f"http://{name}", "openai") for name in (own, *others))
    return Model("m", servers, model_class=ModelClass("c", frozenset({own}), fallback))


def sight_of(**more: Any) -> Sight:
    return Sight(Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0), NOW, **more)


def asked(model: Model, sight: Sight) -> list[str]:
    return [server.server_id for server in make_plan(model, sight, {})[0].order]


def test_others_are_asked_after_a_classs_own_server_whatever_is_in_memory() -> None:
    assert asked(with_own("b", "a", "c"), sight_of()) == ["b", "a", "c"]
    assert asked(with_own("b", "a", fallback=False), sight_of()) == ["b"]
    warm = {"a": Load(models=("m",)), "b": Load(models=())}
    assert asked(with_own("b", "a"), sight_of(loads=warm)) == ["b", "a"], "else the class's server never gets it back"


def test_others_that_help_take_turns() -> None:
    cursors: Cursors = {"gone": 100}
    seconds = []
    for _ in range(6):
        plan, cursors = make_plan(with_own("b", "a", "c"), sight_of(), cursors)
        seconds.append(plan.order[1].server_id)
    assert seconds == ["a", "c"] * 3
    assert set(cursors) == {"a", "c"}, "nothing is remembered of who has gone"


def test_who_asked_for_a_pause_comes_after_all_others_also_of_its_class() -> None:
    sight = sight_of()
    sight.standings.pause("b", "", NOW, 2.0)
    assert asked(with_own("b", "a"), sight) == ["a", "b"]
    sight.standings.pause("a", "", NOW, 2.0)
    assert asked(with_own("b", "a"), sight) == ["b", "a"]
