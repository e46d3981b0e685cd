"""What each strategy promises of the order, over many requests."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from apps.orchestration.fleet import Model, ModelClass, Server
from apps.orchestration.health.conditions import Load, Record
from apps.orchestration.health.pace import RATIO, REMEMBERED, WARM, Key, Pace, Paces
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.plan import Needs, Sight, find_candidates, make_plan
from apps.orchestration.routing.strategies import Cursors
from apps.orchestration.routing.weights import STEPS

NOW = 1_000.0
weights = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def model_of(given_weights: Sequence[int], model_class: ModelClass | None = None) -> Model:
    servers = tuple(Server(f"s{n}", f"http://s{n}", "openai", weight) for n, weight in enumerate(given_weights))
    return Model("m", servers, model_class=model_class)


def sight(strategy: str = "weighted_round_robin", **more: object) -> Sight:
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    return Sight(standings, NOW, strategy=strategy, **more)  # type: ignore[arg-type]


def firsts(model: Model, seen: Sight, times: int, cursors: Cursors | None = None) -> tuple[list[str], Cursors]:
    """Who comes first in each of so many plans."""
    chosen, cursors = [], cursors or {}
    for _ in range(times):
        plan, cursors = make_plan(model, seen, cursors)
        chosen.append(plan.order[0].server_id)
    return chosen, cursors


def test_5_1_1_is_nginxs_sequence() -> None:
    chosen, _ = firsts(model_of([5, 1, 1]), sight(), 14)
    assert chosen == ["s0", "s0", "s1", "s0", "s2", "s0", "s0"] * 2


@given(weights, st.integers(0, 40), st.integers(1, 3))
def test_any_round_has_each_server_first_as_often_as_its_weight_says(
    given_weights: list[int], before: int, rounds: int
) -> None:
    model = model_of(given_weights)
    _, cursors = firsts(model, sight(), before)
    chosen, _ = firsts(model, sight(), rounds * sum(given_weights), cursors)
    assert Counter(chosen) == {f"s{n}": weight * rounds for n, weight in enumerate(given_weights)}


@given(weights, st.integers(1, 100))
def test_turns_are_spread_smoothly(given_weights: list[int], times: int) -> None:
    """At no moment is anybody further from his share than the number of servers."""
    chosen, _ = firsts(model_of(given_weights), sight(), times)
    for place in range(1, times + 1):
        counted = Counter(chosen[:place])
        for n, weight in enumerate(given_weights):
            assert abs(counted[f"s{n}"] - place * weight / sum(given_weights)) < len(given_weights)


@given(weights, st.integers(1, 30), st.data())
def test_shares_are_right_again_some_rounds_after_weights_have_changed(
    given_weights: list[int], times: int, data: st.DataObject
) -> None:
    assume(len(given_weights) > 1)
    _, cursors = firsts(model_of(given_weights), sight(), times)
    changed = data.draw(st.lists(st.integers(1, 9), min_size=len(given_weights), max_size=len(given_weights)))
    length = sum(changed)
    _, cursors = firsts(model_of(changed), sight(), 10 * length, cursors)
    counted = Counter(firsts(model_of(changed), sight(), length, cursors)[0])
    assert all(abs(counted[f"s{n}"] - weight) <= 1 for n, weight in enumerate(changed))


def test_a_class_with_equal_shares_is_50_50_whatever_the_weights() -> None:
    model = model_of([9, 1], ModelClass("heavyweight", shares={"s0": 1, "s1": 1}))
    counted = Counter(firsts(model, sight(), 1000)[0])
    assert abs(counted["s0"] - counted["s1"]) <= 1


def test_given_shares_come_before_weights() -> None:
    model = model_of([1, 1, 1], ModelClass("c", shares={"s0": 7, "s1": 2}))
    assert Counter(firsts(model, sight(), 100)[0]) == {"s0": 70, "s1": 20, "s2": 10}


def test_equal_servers_have_exact_shares_while_their_times_differ_a_little() -> None:
    paces = Paces()
    for server_id, seconds in (("s0", 0.5), ("s1", 1.2)):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    counted = Counter(firsts(model_of([1, 1]), sight(paces=paces), 1000)[0])
    assert counted == {"s0": 500, "s1": 500}


def test_a_much_slower_server_gets_less_and_is_not_forgotten() -> None:
    paces = Paces()
    for server_id, seconds in (("s0", 0.5), ("s1", 6.0)):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    counted = Counter(firsts(model_of([1, 1]), sight(paces=paces), 1000)[0])
    assert 100 < counted["s1"] < 250


def test_who_holds_the_model_no_more_is_no_measure_for_the_others() -> None:
    paces = Paces()
    for server_id, seconds in (("s0", 1.0), ("s1", 2.0), ("elsewhere", 0.05)):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    counted = Counter(firsts(model_of([1, 1]), sight(paces=paces), 1000)[0])
    assert counted == {"s0": 500, "s1": 500}


def test_a_server_that_has_become_fast_again_is_trusted_after_a_few_answers() -> None:
    paces = Paces()
    for server_id, seconds in (("s0", 0.5), ("s1", 10.0)):
        for _ in range(600):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    assert firsts(model_of([1, 1]), sight(paces=paces), 1000)[0].count("s1") < 200
    for number in range(1, 6):
        paces[Key("m", "s1", False)].answered(0.5, NOW + 15 * number)
    assert firsts(model_of([1, 1]), sight(paces=paces), 1000)[0].count("s1") == 500


@pytest.mark.parametrize(
    ("hedge_ms", "slow", "budget", "share"),
    [
        (0, 6.0, 0.05, 0.03),
        (0, 60.0, 0.05, 0.03),
        (2000, 6.0, 0.05, 0.03),
        (0, 6.0, 1 / 60, 0.01),
        (9000, 6.0, 0.05, 0.12),  # no backup request would be made for it
        (0, 6.0, 0.0, 0.12),  # none is made at all
        (None, 6.0, 0.05, 0.12),
        (0, 1.2, 0.05, 0.333),
    ],
)
def test_slow_servers_get_no_more_than_there_are_backup_requests_for(
    hedge_ms: int | None, slow: float, budget: float, share: float
) -> None:
    paces = Paces()
    for server_id, seconds in (("s0", slow), ("s1", 0.5), ("s2", 0.5)):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    model = model_of([1, 1, 1], ModelClass("c", hedge_ms=hedge_ms))
    counted = Counter(firsts(model, sight(paces=paces, hedge_budget=budget), 2000)[0])
    assert counted["s0"] / 2000 == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_the_slower_the_less_without_a_jump(slow: int) -> None:
    """Whoever else is slow, too: what they lose comes to one."""
    servers, shares = [f"s{number}" for number in range(4)], []
    model = model_of([1] * 4, ModelClass("c", hedge_ms=0))
    for steps in range(60):
        paces = Paces()
        for server_id in servers:
            for _ in range(2 * WARM):
                paces[Key("m", server_id, False)].answered(
                    0.2 * 1.07**steps if server_id in servers[:slow] else 0.2, NOW
                )
        [tier] = find_candidates(model, sight(paces=paces, hedge_budget=0.05)).tiers
        weights = [weight for _, weight in tier]
        shares.append(sum(weights[:slow]) / sum(weights))
    assert all(0 <= earlier - later < 0.3 for earlier, later in pairwise(shares)), "medians come in steps of a quarter"
    assert shares[0] == slow / 4
    assert shares[-1] < 0.1


def test_without_a_budget_nothing_is_taken_from_the_slow() -> None:
    model, paces = model_of([1] * 4, ModelClass("c", hedge_ms=0)), Paces()
    for server_id in ("s0", "s1", "s2", "s3"):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(0.2 if server_id == "s3" else 1.2, NOW)
    [tier] = find_candidates(model, sight(paces=paces, hedge_budget=0.0)).tiers
    assert [weight for _, weight in tier] == [50, 50, 50, 100]


def test_another_that_begins_to_be_slow_gives_a_slow_one_nothing() -> None:
    model, shares = model_of([1] * 4, ModelClass("c", hedge_ms=0)), []
    for steps in range(30):
        paces = Paces()
        for server_id, seconds in (("s0", 1.3), ("s1", 0.4 * 1.07**steps), ("s2", 0.2), ("s3", 0.2)):
            for _ in range(2 * WARM):
                paces[Key("m", server_id, False)].answered(seconds, NOW)
        [tier] = find_candidates(model, sight(paces=paces, hedge_budget=0.05)).tiers
        weights = [weight for _, weight in tier]
        shares.append(weights[0] / sum(weights))
    assert max(later - earlier for earlier, later in pairwise(shares)) < 0.02


def test_a_share_is_that_of_a_tier() -> None:
    """Others that only help have none of the traffic, so they count for nothing."""
    paces = Paces()
    for server_id, seconds in (("s0", 0.2), ("s1", 6.0), ("s2", 0.2), ("s3", 0.2)):
        for _ in range(2 * WARM):
            paces[Key("m", server_id, False)].answered(seconds, NOW)
    model = model_of([1] * 4, ModelClass("c", own=frozenset(("s0", "s1")), hedge_ms=0))
    counted = Counter(firsts(model, sight(paces=paces, hedge_budget=0.05), 2000)[0])
    assert counted["s1"] / 2000 == pytest.approx(0.03, rel=0.15)
    assert counted["s0"] + counted["s1"] == 2000


@pytest.mark.parametrize("load", [Load(cpu=0.95), Load(memory=0.97), Load(queue=4)])
def test_a_loaded_server_gets_less(load: Load) -> None:
    counted = Counter(firsts(model_of([1, 1]), sight(loads={"s1": load}), 1000)[0])
    assert 50 < counted["s1"] < 400


def test_a_busy_server_within_its_healthy_band_keeps_its_share() -> None:
    loads = {"s0": Load(cpu=0.2, memory=0.1), "s1": Load(cpu=0.75, memory=0.7, queue=0)}
    assert Counter(firsts(model_of([1, 1]), sight(loads=loads), 1000)[0]) == {"s0": 500, "s1": 500}


@pytest.mark.parametrize(("reason", "to_one"), [("slow", 2), ("critical", 10)])
def test_a_degraded_server_gets_half_and_one_whose_probes_hardly_come_back_a_tenth(reason: str, to_one: int) -> None:
    probe = {"status": "degraded", "reason": reason}
    records = {"s1": Record(status="degraded", source="traffic", reason="failures", sources={"probe": probe})}
    counted = Counter(firsts(model_of([1, 1]), sight(records=records), 100 * (to_one + 1))[0])
    assert counted == {"s0": 100 * to_one, "s1": 100}


def test_after_its_return_a_server_gets_more_and_more_without_a_step() -> None:
    model, returned = model_of([1, 1]), int(NOW * 1000)
    shares = []
    for tenths in range(0, 310, 5):
        seen = sight(records={"s1": Record(returned=returned)})
        seen = Sight(seen.standings, NOW + tenths / 10, records=seen.records, slow_start=30.0)
        shares.append(Counter(firsts(model, seen, 1000)[0])["s1"] / 1000)
    assert shares[0] < 0.1
    assert shares[-1] == 0.5
    assert all(0 <= later - earlier < 2.5 / STEPS for earlier, later in pairwise(shares))


@pytest.mark.parametrize(("ahead", "whole"), [(0.5, False), (120, True)])
def test_a_return_that_lies_ahead_is_long_ago(ahead: float, whole: bool) -> None:
    """Redis's clock was set back since; half a second is the way from there to here."""
    seen = sight(records={"s1": Record(returned=round((NOW + ahead) * 1000))})
    counted = Counter(firsts(model_of([1, 1]), seen, 1000)[0])
    assert (counted["s1"] == 500) is whole


@pytest.mark.parametrize("cold", [False, True])
def test_a_classs_own_server_gets_its_work_back_from_others_without_a_step(cold: bool) -> None:
    """However many they are, and though it must load the model while they have it in memory."""
    model, returned = model_of([1, 1, 2, 4], ModelClass("c", frozenset({"s0"}))), int(NOW * 1000)
    loads = {"s0": Load(models=())} if cold else {}
    shares = []
    for tenths in range(0, 310, 5):
        seen = sight(records={"s0": Record(returned=returned)}, loads=loads)
        seen = replace(seen, now=NOW + tenths / 10)
        counted = Counter(firsts(model, seen, 1000)[0])
        assert counted["s1"] <= counted["s2"] <= counted["s3"]
        shares.append(counted["s0"] / 1000)
    assert shares[0] == 0.1
    assert shares[-1] == 1.0
    assert all(0 <= later - earlier < 2.5 / STEPS for earlier, later in pairwise(shares))


def test_while_another_of_a_classs_own_servers_is_well_nobody_else_is_needed() -> None:
    rule = ModelClass("c", frozenset({"s0", "s1"}), shares={"s0": 1, "s1": 1})
    seen = sight(records={"s0": Record(returned=int(NOW * 1000))})
    assert set(firsts(model_of([1, 1, 9], rule), seen, 100)[0]) == {"s0", "s1"}
    assert Counter(firsts(model_of([1, 1, 9], rule), sight(), 100)[0]) == {"s0": 50, "s1": 50}


@pytest.mark.parametrize(("at", "tried"), [(0.5, False), (20.0, False), (32.0, True)])
def test_who_is_out_and_only_to_help_is_tried_rarely_while_nobody_needs_it(at: float, tried: bool) -> None:
    seen = sight()
    seen.standings.failed("s1", NOW, "refused")
    plan, _ = make_plan(model_of([1, 1], ModelClass("c", frozenset({"s0"}))), replace(seen, now=NOW + at), {})
    assert (plan.trial is not None) is tried
    seen.standings.pause("s0", "", NOW, 60.0)
    plan, _ = make_plan(model_of([1, 1], ModelClass("c", frozenset({"s0"}))), replace(seen, now=NOW + at), {})
    assert (plan.trial is not None) is (at > 1.0), "as any other when the class's own want to rest"


def test_while_one_of_a_classs_own_servers_that_must_load_is_well_nobody_else_is_needed() -> None:
    rule = ModelClass("c", frozenset({"s0", "s1"}))
    seen = sight(records={"s0": Record(returned=int(NOW * 1000))}, loads={"s1": Load(models=())})
    assert set(firsts(model_of([1, 1, 9], rule), seen, 100)[0]) == {"s0"}


def test_least_busy_takes_who_has_least_for_its_weight() -> None:
    busy = {"s0": 4, "s1": 3, "s2": 9}
    plan, _ = make_plan(model_of([2, 1, 9]), sight("least_busy", in_flight=busy), {})
    assert [server.server_id for server in plan.order] == ["s2", "s0", "s1"]


def test_least_busy_lets_equals_take_turns() -> None:
    assert Counter(firsts(model_of([1, 1, 1]), sight("least_busy"), 99)[0]) == {"s0": 33, "s1": 33, "s2": 33}


def test_peak_ewma_prefers_the_fast_and_counts_what_is_under_way() -> None:
    paces = Paces()
    for server_id, seconds in (("s0", 0.1), ("s1", 0.2), ("s2", 2.0)):
        paces[Key("m", server_id, False)].answered(seconds, NOW)
    counted = Counter(firsts(model_of([1, 1, 1]), sight("peak_ewma", paces=paces), 600)[0])
    assert counted["s0"] > counted["s1"] > counted["s2"] == 0, "of two, s2 is always the slower one"
    busy = sight("peak_ewma", paces=paces, in_flight={"s0": 30, "s1": 20})
    assert 360 < Counter(firsts(model_of([1, 1, 1]), busy, 600)[0])["s2"] < 440, "in two of three pairs"


def test_a_server_that_fails_fast_is_not_fast() -> None:
    paces = Paces()
    for _ in range(50):
        paces[Key("m", "s0", False)].failed(0.001, NOW)
        paces[Key("m", "s1", False)].answered(1.0, NOW)
    assert set(firsts(model_of([1, 1]), sight("peak_ewma", paces=paces), 100)[0]) == {"s1"}


def test_a_server_that_was_slow_once_is_asked_again_after_a_while() -> None:
    paces = Paces()
    paces[Key("m", "s0", False)].failed(0.001, NOW - 60)
    for ago in range(60, -1, -1):
        paces[Key("m", "s1", False)].answered(0.3, NOW - ago)
    soon, later = sight("peak_ewma", paces=paces), sight("peak_ewma", paces=paces)
    soon.now = NOW - 59
    assert set(firsts(model_of([1, 1]), soon, 100)[0]) == {"s1"}
    assert set(firsts(model_of([1, 1]), later, 100)[0]) == {"s0"}, "nobody else can find out that it is fast again"


def test_a_server_that_has_fallen_silent_gets_no_more_than_one_that_answers() -> None:
    paces = Paces()
    for server_id, ago in (("s0", 60), ("s1", 0)):
        paces[Key("m", server_id, False)].answered(30.0, NOW - ago)
    silent = sight("peak_ewma", paces=paces, in_flight={"s0": 6, "s1": 5})
    assert set(firsts(model_of([1, 1]), silent, 100)[0]) == {"s1"}


@pytest.mark.parametrize("ago", [None, 100_000])
def test_who_is_not_known_or_no_longer_is_tried_by_one_at_a_time(ago: int | None) -> None:
    paces = Paces()
    paces[Key("m", "s1", False)].answered(0.5, NOW)
    if ago:
        paces[Key("m", "s0", False)].answered(0.5, NOW - ago)
    free, asked = sight("peak_ewma", paces=paces), sight("peak_ewma", paces=paces, in_flight={"s0": 1})
    assert set(firsts(model_of([1, 1]), free, 10)[0]) == {"s0"}
    assert set(firsts(model_of([1, 1]), asked, 10)[0]) == {"s1"}


def test_a_server_whose_calls_are_overtaken_stays_slow() -> None:
    slow, quick = Pace(), Pace()
    for _ in range(WARM):
        slow.answered(1.0, NOW)
        quick.answered(0.01, NOW)
    for _ in range(REMEMBERED):
        slow.lost(0.02, NOW)  # while another answered in that time
        quick.lost(0.002, NOW)
    assert slow.quantile(0.05) == pytest.approx(1.0, rel=RATIO - 1)
    assert quick.quantile(0.99) == pytest.approx(0.01, rel=RATIO - 1)
    unknown = Pace()
    unknown.lost(3.0, NOW)
    assert unknown.average == 3.0, "at least"


@pytest.mark.parametrize(("servers", "conversations", "turns"), [(3, 100, 5), (4, 60, 20), (3, 300, 10), (5, 200, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_with_affinity_conversations_stay_and_nobody_gets_too_much(
    servers: int, conversations: int, turns: int, seed: int
) -> None:
    chance = random.Random(seed)
    model, cursors = model_of([1] * servers), dict[str, float]()
    homes: dict[int, str] = {}
    got, settled = Counter[str](), Counter[str]()
    stayed = 0
    waiting = [chance.getrandbits(64) for _ in range(conversations)] * turns
    chance.shuffle(waiting)
    for conversation in waiting:
        seen = sight("affinity", homes=homes, settled=lambda _model: settled)
        plan, cursors = make_plan(model, seen, cursors, Needs(affinity=conversation))  # type: ignore[arg-type]
        server_id = plan.order[0].server_id
        stayed += homes.get(conversation, server_id) == server_id
        settled[server_id] += homes.get(conversation) != server_id
        homes[conversation] = server_id
        got[server_id] += 1
    assert stayed >= 0.95 * len(waiting)
    assert max(got.values()) <= 1.25 * len(waiting) / servers


@pytest.mark.parametrize("names", [("s0", "s1", "s2"), ("a", "b", "c", "d", "e"), [f"gpu-{n:02}" for n in range(10)]])
def test_hashing_gives_each_server_as_many_conversations(names: Sequence[str]) -> None:
    model = Model("m", tuple(Server(name, f"http://{name}", "openai", 1) for name in names))
    drawn, found = random.Random(0), Counter[str]()
    for _ in range(600 * len(names)):
        needs = Needs(affinity=drawn.getrandbits(64))
        found[make_plan(model, sight("affinity"), {}, needs)[0].order[0].server_id] += 1
    assert found.keys() == set(names)
    assert all(480 < count < 720 for count in found.values()), found


def test_affinity_moves_only_who_must_when_a_server_goes() -> None:
    model = model_of([1, 1, 1, 1])
    keys = [random.Random(n).getrandbits(64) for n in range(200)]

    def homes(seen: Sight) -> dict[int, str]:
        return {key: make_plan(model, seen, {}, Needs(affinity=key))[0].order[0].server_id for key in keys}

    before, without = homes(sight("affinity")), sight("affinity")
    without.standings.failed("s2", NOW, "refused")
    after = homes(without)
    assert all(after[key] == home for key, home in before.items() if home != "s2")
    assert 30 < sum(home == "s2" for home in before.values()) < 70


def test_new_conversations_settle_evenly_whatever_the_hash_says() -> None:
    model, settled = model_of([1, 1, 2]), Counter[str]()
    for number in range(200):
        seen = sight("affinity", settled=lambda _model: settled)
        plan, _ = make_plan(model, seen, {}, Needs(affinity=random.Random(number).getrandbits(64)))
        settled[plan.order[0].server_id] += 1
    assert all(abs(settled[name] - share) <= 2 for name, share in (("s0", 50), ("s1", 50), ("s2", 100)))


def test_one_that_goes_on_is_where_hashing_sends_it_though_enough_have_settled_there() -> None:
    model, crowded = model_of([1, 1, 1]), {"s0": 9.0, "s1": 0.0, "s2": 0.0}
    for number in range(50):
        key = random.Random(number).getrandbits(64)
        alone = make_plan(model, sight("affinity"), {}, Needs(affinity=key))[0].order[0].server_id
        seen = sight("affinity", settled=lambda _model: crowded)
        went_on = make_plan(model, seen, {}, Needs(affinity=key, continues=True))[0].order[0].server_id
        assert went_on == alone
        assert make_plan(model, seen, {}, Needs(affinity=key))[0].order[0].server_id != "s0"
