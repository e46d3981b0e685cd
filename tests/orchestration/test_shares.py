"""Which shares are told of a model's servers."""

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import Record
from apps.orchestration.shares import shares

ONE, OTHER = (Server(name, f"http://{name}", "openai") for name in ("one", "other"))
MODEL = Model("m", (ONE, OTHER))


def test_equal_servers_have_equal_shares_and_those_away_have_none() -> None:
    assert shares(MODEL, (), {}) == {"one": 0.5, "other": 0.5}
    assert shares(MODEL, {"one"}, {}) == {"other": 1.0}
    assert shares(MODEL, {"one", "other"}, {}) == {}


def test_a_degraded_server_has_half_its_weight() -> None:
    assert shares(MODEL, (), {"one": Record("degraded")}) == {"one": 0.3333, "other": 0.6667}


def test_a_server_that_is_a_class_s_own_has_less_for_others() -> None:
    model = Model("m", (ONE, OTHER), reserved=frozenset({"one"}))
    assert shares(model, (), {}) == {"one": 0.3333, "other": 0.6667}


def test_a_slow_start_passes_by_itself() -> None:
    assert shares(MODEL, (), {"one": Record(returned=2**50)}) == {"one": 0.5, "other": 0.5}
