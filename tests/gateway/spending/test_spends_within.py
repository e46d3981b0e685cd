"""Nobody gives another key more to spend than the own has, but who manages teams."""

from hypothesis import given
from hypothesis import strategies as st

from citadel.caller import Budget, Caller
from citadel.permissions import spends_within
from tests.gateway.access.giving import within

PERIODS = ("day", "week", "month", "total")
BOUND = st.none() | st.integers(0, 3)
Bounds = dict[str, tuple[int | None, int | None]]


def caller(key_id: str, role: str, budgets: Bounds, team: int | None = None) -> Caller:
    own = [Budget(number, key_id, period, *bounds) for number, (period, bounds) in enumerate(budgets.items())]
    teams = [] if team is None else [Budget(9, "team:t", "day", team, None)]
    return Caller(key_id, key_id, "t", role, None, budgets=(*teams, *own))


BUDGETS = st.dictionaries(st.sampled_from(PERIODS), st.tuples(BOUND, BOUND))


def spent_at_most(budgets: Bounds, period: str, unit: int) -> float:
    bound = budgets.get(period, (None, None))[unit]
    return float("inf") if bound is None else bound


@given(BUDGETS, BUDGETS)
def test_each_of_the_own_budgets_bounds_the_other_key_too(own: Bounds, other: Bounds) -> None:
    giver, granted = caller("a", "owner", own, team=1), caller("b", "developer", other)
    lies_within = all(
        period in other and spent_at_most(other, period, unit) <= spent_at_most(own, period, unit)
        for period in own
        for unit in (0, 1)
    )
    assert spends_within(granted, giver) is lies_within
    assert within(granted, giver) is lies_within
    assert spends_within(giver, giver)
    assert spends_within(granted, caller("a", "admin", own))


@given(BUDGETS)
def test_the_team_s_budget_is_nobody_s_own(other: Bounds) -> None:
    assert spends_within(caller("b", "developer", other), caller("a", "owner", {}, team=0))
