"""Periods of the calendar, purses, and what requests cost."""

from datetime import date, timedelta
from decimal import ROUND_CEILING, Decimal

from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.limits.budgets import BILLION, Need, Price, begins, claims, day_of, ends, purses
from citadel.caller import MOST_MONEY, Budget, Period

days = st.dates(date(1970, 1, 1), date(2999, 12, 31))
PERIODS: tuple[Period, ...] = ("day", "week", "month")
periods = st.sampled_from(PERIODS)


@given(period=periods, day=days)
def test_each_day_lies_in_one_period(period: Period, day: date) -> None:
    first, after = begins(period, day), ends(period, day)
    assert after and first <= day < after
    assert begins(period, first) == first and ends(period, first) == after
    assert begins(period, after) == after, "the next begins where this ends"
    assert begins(period, first - timedelta(1)) < first


def test_the_calendar() -> None:
    wednesday = date(2024, 2, 28)
    assert (begins("day", wednesday), ends("day", wednesday)) == (wednesday, date(2024, 2, 29))
    assert (begins("week", wednesday), ends("week", wednesday)) == (date(2024, 2, 26), date(2024, 3, 4))
    assert (begins("month", wednesday), ends("month", wednesday)) == (date(2024, 2, 1), date(2024, 3, 1))
    assert ends("month", date(2024, 12, 31)) == date(2025, 1, 1)
    assert begins("total", wednesday) == begins("total", date(1970, 1, 1)) and ends("total", wednesday) is None
    assert (
        day_of(0) == date(1970, 1, 1) and day_of(86_399.999) == date(1970, 1, 1) and day_of(86_400) > date(1970, 1, 1)
    )


def test_each_bound_of_each_period_is_counted_apart() -> None:
    own, team = Budget(1, "key", "day", 100, 5), Budget(2, "team:red", "month", None, 7)
    month = Budget(3, "key", "month", 1000, None)
    found = purses((own, team, month), date(2026, 12, 1))
    assert [(one.unit, one.limit) for one in found] == [("tokens", 100), ("money", 5), ("money", 7), ("tokens", 1000)]
    assert len({one.name for one in found}) == 4, "a day and the month that begins with it are two"
    assert {one.name for one in found}.isdisjoint(one.name for one in purses((own, month), date(2027, 1, 1)))
    assert [one.whose for one in found][1:3] == ["This key", "The team 'red'"]
    taken = claims(found, Need(30, 12), 99)
    assert [claim.amount for claim in taken] == [42, 99, 99, 42]


prices = st.integers(0, 10**15)


@given(
    prices=st.tuples(prices, prices, prices),
    prompt=st.integers(0, 10**6),
    answers=st.integers(0, 10**6),
    milliseconds=st.integers(0, 10**7),
)
def test_costs_are_exact_and_rounded_up(
    prices: tuple[int, int, int], prompt: int, answers: int, milliseconds: int
) -> None:
    cost = Price(*prices).cost(Need(prompt, answers, milliseconds / 1000))
    million = Decimal(1_000_000)
    exact = Decimal(prices[0]) * prompt / million + Decimal(prices[1]) * answers / million
    exact += Decimal(prices[2]) * milliseconds / 1000
    assert cost == min(MOST_MONEY * BILLION, int(exact.to_integral_value(ROUND_CEILING)))
