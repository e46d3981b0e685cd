"""What may be spent in a period of the calendar: purses, what a request claims of them, what it has cost."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Literal, NamedTuple

from apps.gateway.spending.amounts import PLACES, told
from citadel.caller import MOST_MONEY, Budget, Period

BILLION = 10**9
TEAM = "team:"
IN_PURSE = "$"
"""Stands before the name of a purse, of which amounts are held as places are of a server."""
_EVER = date.min


class Purse(NamedTuple):
    """What a budget bounds in one period: tokens, or money in billionths."""

    name: str
    """Under which it is counted."""
    budget: Budget
    begins: date
    """The period's first day (UTC)."""
    unit: Literal["tokens", "money"]
    limit: int

    @property
    def ends(self) -> date | None:
        """The first day after the period; None where it has no end."""
        return ends(self.budget.period, self.begins)

    @property
    def whose(self) -> str:
        """As an error says it."""
        holder = self.budget.holder
        return f"The team '{holder.removeprefix(TEAM)}'" if holder.startswith(TEAM) else "This key"

    def told(self, amount: int) -> str:
        """So much of its unit, as an error says it."""
        return f"{amount} tokens" if self.unit == "tokens" else f"{told(Decimal(amount).scaleb(-PLACES))} of money"


class Claim(NamedTuple):
    """What a request may take out of a purse at most."""

    purse: Purse
    amount: int


class Need(NamedTuple):
    """What a request needs, or has used: tokens of its prompt and of its answers, and seconds of a server's time."""

    prompt: int = 0
    answers: int = 0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Of both."""
        return self.prompt + self.answers


class Price(NamedTuple):
    """In billionths of the money: of a million prompt tokens, of a million answer tokens, of a second of a server."""

    prompt: int = 0
    completion: int = 0
    server_second: int = 0

    def cost(self, need: Need) -> int:
        """In billionths, rounded up: what costs something is never for nothing. No more than a budget may hold."""
        tokens = need.prompt * self.prompt + need.answers * self.completion
        working = round(need.seconds * 1_000_000) * self.server_second
        return min(MOST_MONEY * BILLION, -(-(tokens + working) // 1_000_000))


FREE = Price()


def begins(period: Period, day: date) -> date:
    """The first day of the period in which a day lies."""
    if period == "day":
        return day
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else _EVER


def ends(period: Period, day: date) -> date | None:
    """The first day after the period in which a day lies; None for one without an end."""
    first = begins(period, day)
    if period == "month":
        return (first + timedelta(days=32)).replace(day=1)
    return first + timedelta(days=7 if period == "week" else 1) if period in ("day", "week") else None


def day_of(moment: float) -> date:
    """The day (UTC) of a moment in seconds since the epoch."""
    return datetime.fromtimestamp(moment, UTC).date()


@lru_cache(maxsize=10_000)
def purses(budgets: Sequence[Budget], day: date) -> tuple[Purse, ...]:
    """What these budgets bound on a day."""
    return tuple(
        Purse(f"{budget.holder}:{budget.period}:{first}:{unit}", budget, first, unit, limit)
        for budget in budgets
        for first in [begins(budget.period, day)]
        for unit, limit in _bounds(budget)
        if limit is not None
    )


def claims(purses: Sequence[Purse], need: Need, cost: int) -> tuple[Claim, ...]:
    """What a request that needs so much, and costs so much, takes out of each of the purses."""
    return tuple(Claim(purse, need.tokens if purse.unit == "tokens" else cost) for purse in purses)


def _bounds(budget: Budget) -> tuple[tuple[Literal["tokens"], int | None], tuple[Literal["money"], int | None]]:
    return ("tokens", budget.tokens), ("money", budget.money)
