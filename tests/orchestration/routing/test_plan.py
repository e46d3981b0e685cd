"""Plans, for any fleet and any trouble: who is asked, in which order, and how often each comes first."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.plan import Cursors, Plan, make_plan

NOW = 1_000.0
Situation = tuple[Model, Standings]


@st.composite
def situations(draw: st.DrawFn, *, calm: bool = False) -> Situation:
    """A model's servers, and what has happened to them."""
    states = st.just("active") if calm else st.sampled_from(["active", "active", "active", "draining", "disabled"])
    servers = tuple(
        Server(f"s{number}", f"http://s{number}", "openai", draw(st.integers(1, 9)), draw(states))
        for number in range(draw(st.integers(1, 5)))
    )
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    for server in servers:
        out = None if calm else draw(st.sampled_from([None, None, 0.0, 1.0, 5.0, 50.0]))
        if out is not None:  # seconds since it went out, and perhaps somebody tries it
            standings.failed(server.server_id, NOW - out, refused=True)
            if draw(st.booleans()):
                standings.begin_trial(server.server_id, NOW - out)
    return Model("m", servers), standings


def run(situation: Situation, times: int, cursors: Cursors | None = None) -> tuple[list[Plan], Cursors]:
    plans = []
    cursors = cursors or {}
    for _ in range(times):
        plan, cursors = make_plan(*situation, cursors, NOW)
        plans.append(plan)
    return plans, cursors


@given(situations())
def test_everybody_is_either_asked_or_dropped_with_a_reason(situation: Situation) -> None:
    model, standings = situation
    [plan], _ = run(situation, 1)
    asked = [server.server_id for server in plan.order]
    assert len(asked) == len(set(asked))
    reasons = {dropped.server_id: dropped.reason for dropped in plan.dropped}
    for server in model.servers:
        if server.state != "active":
            assert reasons[server.server_id] == server.state
            assert server.server_id not in asked
        elif standings.in_rotation(server.server_id):
            assert server.server_id in asked
            assert server.server_id not in reasons
        else:
            assert reasons[server.server_id] == "ejected"
            assert (server.server_id in asked) is (server.server_id == plan.trial)


@given(situations())
def test_one_ejected_server_at_most_is_tried_first_and_when_it_is_due(situation: Situation) -> None:
    model, standings = situation
    [plan], _ = run(situation, 1)
    active = [server.server_id for server in model.servers if server.state == "active"]
    out = [name for name in active if not standings.in_rotation(name)]
    due = [name for name in out if standings.trial_due(name, NOW, lonely=len(out) == len(active))]
    assert (plan.trial is not None) is bool(due)
    if plan.trial:
        assert plan.trial in due
        assert plan.order[0].server_id == plan.trial
        assert standings.retry_in(plan.trial, NOW) == min(standings.retry_in(name, NOW) for name in due)


@given(situations())
def test_an_empty_plan_says_when_to_come_back(situation: Situation) -> None:
    [plan], _ = run(situation, 1)
    if plan.order:
        assert plan.retry_after == 0
    else:
        assert 1 <= plan.retry_after <= 30


@given(situations(calm=True), st.integers(0, 40), st.integers(1, 3))
def test_any_round_has_each_server_first_as_often_as_its_weight_says(
    situation: Situation, before: int, rounds: int
) -> None:
    model, _ = situation
    _, cursors = run(situation, before)
    length = sum(server.weight for server in model.servers)
    plans, _ = run(situation, rounds * length, cursors)
    counted = Counter(plan.order[0].server_id for plan in plans)
    assert counted == {server.server_id: server.weight * rounds for server in model.servers}


@given(situations(calm=True), st.integers(1, 100))
def test_turns_are_spread_smoothly(situation: Situation, times: int) -> None:
    """At no moment is anybody further from his share than the number of servers."""
    model, _ = situation
    total = sum(server.weight for server in model.servers)
    counted: Counter[str] = Counter()
    for place, plan in enumerate(run(situation, times)[0], start=1):
        counted[plan.order[0].server_id] += 1
        for server in model.servers:
            assert abs(counted[server.server_id] - place * server.weight / total) < len(model.servers)


@given(situations(calm=True), st.integers(1, 30), st.data())
def test_shares_are_right_again_a_round_after_weights_have_changed(
    situation: Situation, times: int, data: st.DataObject
) -> None:
    model, standings = situation
    assume(len(model.servers) > 1)
    _, cursors = run(situation, times)
    servers = tuple(
        Server(server.server_id, server.url, "openai", data.draw(st.integers(1, 9))) for server in model.servers
    )
    changed = (Model("m", servers), standings)
    length = sum(server.weight for server in servers)
    _, cursors = run(changed, 10 * length, cursors)
    plans, _ = run(changed, length, cursors)
    counted = Counter(plan.order[0].server_id for plan in plans)
    assert all(counted[server.server_id] > 0 for server in servers)
    assert all(abs(counted[server.server_id] - server.weight) <= 1 for server in servers)


@given(situations(), st.dictionaries(st.sampled_from(["s0", "s1", "gone"]), st.integers(-9, 9)))
def test_it_is_a_function(situation: Situation, cursors: dict[str, int]) -> None:
    """Nothing that comes in is changed, and the same comes out again."""
    before: tuple[Mapping[str, Any], str] = (dict(cursors), repr(situation[1]._troubled))
    first = make_plan(*situation, cursors, NOW)
    assert make_plan(*situation, cursors, NOW) == first
    assert (cursors, repr(situation[1]._troubled)) == before
    assert "gone" not in first[1] or first[1] == cursors


@given(situations(calm=True), st.integers(0, 50))
def test_cursors_stay_small(situation: Situation, times: int) -> None:
    model, _ = situation
    _, cursors = run(situation, times)
    assert sum(cursors.values()) == 0
    assert all(abs(value) <= sum(server.weight for server in model.servers) for value in cursors.values())
