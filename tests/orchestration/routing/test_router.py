"""What a worker's router keeps from one request to the next, and when it forgets it."""

from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from apps.orchestration.fleet import Holding, Model, ModelClass, Server
from apps.orchestration.health.conditions import Load, Record
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.plan import Needs
from apps.orchestration.routing.router import Router
from citadel.sections import RoutingSection

SERVERS = tuple(Server(f"s{number}", f"http://s{number}", "openai") for number in range(2))


def router_with(records: Mapping[str, Record], loads: Mapping[str, Load]) -> tuple[Router, Any]:
    homes = SimpleNamespace(known={}, settled=lambda _model: {}, remember=lambda *_: None)
    watch: Any = SimpleNamespace(records=records, loads=loads, clock_ms=0.0, homes=homes)
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
    return Router(standings, watch, RoutingSection()), watch


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
