"""What a caller may do with budgets: those of teams are an administrator's, those of a key are for who manages it."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, get_args

from django.db import IntegrityError, transaction
from django.db.models import Case, CharField, DateField, OuterRef, Q, QuerySet, Subquery, Sum, Value, When
from django.db.models.functions import Coalesce, Concat

from apps.gateway.access.keys import granting as keys
from apps.gateway.limits.budgets import TEAM, begins
from apps.gateway.models import Budget, Spend
from citadel.caller import Caller, Period
from citadel.errors import BadRequest, Conflict, NotFound
from citadel.pages import Page
from citadel.permissions import MANAGE_TEAMS, require

Bounds = Mapping[str, Any]
"""`tokens` and `money`, and what they are to be."""
NOTHING = Decimal(0)


def today() -> date:
    """The day by which periods are told, in UTC."""
    return datetime.now(UTC).date()


def with_spent(rows: QuerySet[Budget], day: date) -> QuerySet[Budget]:
    """Each with the first day of the period around `day` as `since`, and what its holder has used in it as
    `spent_tokens` and `spent_money`, None for nothing.
    """
    of_team = Concat(Value(TEAM), "team__slug", output_field=CharField())
    since = [When(period=period, then=Value(begins(period, day))) for period in get_args(Period)]
    rows = rows.annotate(
        held_by=Coalesce("key__key_id", of_team, output_field=CharField()),
        since=Case(*since, output_field=DateField()),
    )
    used = Spend.objects.filter(holder=OuterRef("held_by"), day__gte=OuterRef("since")).order_by().values("holder")
    return rows.annotate(
        spent_tokens=Subquery(used.annotate(sum=Sum("tokens")).values("sum")),
        spent_money=Subquery(used.annotate(sum=Sum("money")).values("sum")),
    )


def listed(by: Caller, team: str | None, key_id: str | None, page: Page) -> list[Budget]:
    """The budgets that `by` sees, newest first, and one beyond the page: of a team and its keys, or of a key, where
    one is named; NotFound where it sees no such team or key.
    """
    rows = _seen(by)
    if team is not None:
        found = keys.find_team(by, team)
        rows = rows.filter(Q(team=found) | Q(key__team=found))
    if key_id is not None:
        rows = rows.filter(key=keys.find(by, key_id))
    if page.number is not None:
        rows = rows.filter(pk__lt=page.number)
    return list(rows.order_by("-pk")[: page.limit + 1])


def find(by: Caller, number: str) -> Budget:
    """A budget that `by` sees; NotFound where there is none or it is another team's, which is the same."""
    known = number.isascii() and number.isdecimal() and len(number) <= 18
    found = _seen(by).filter(pk=int(number)).first() if known else None
    if found is None:
        raise _no_budget(by, number)
    return found


def create(by: Caller, team: str | None, key_id: str | None, period: Period, bounds: Bounds) -> Budget:
    """A new budget of a team or of a key; Conflict where it has one for this period."""
    if (team is None) == (key_id is None):
        raise BadRequest(
            "A budget is of a team or of a key: name one of them in 'team' or 'key_id'.",
            param="team" if team is None else "key_id",
        )
    with transaction.atomic():
        budget = Budget(period=period)
        if key_id is not None:
            by, budget.key = keys.below(by, key_id)
        else:
            by, budget.team = keys.team_as_it_is(by, str(team))
            require(by, MANAGE_TEAMS)
        _keep(budget, bounds)
        _check(by, budget)
    return find(by, str(budget.pk))


def change(by: Caller, number: str, bounds: Bounds) -> Budget:
    """Changes what is named and gives the budget as it is then."""
    with transaction.atomic():
        by, budget = _managed(by, number)
        _keep(budget, bounds)
        _check(by, budget)
    return find(by, number)


def delete(by: Caller, number: str) -> None:
    """Takes a budget away: what it bounded is free."""
    with transaction.atomic():
        by, budget = _managed(by, number)
        budget.delete()
        _check(by, budget)


def _seen(by: Caller) -> QuerySet[Budget]:
    rows = with_spent(Budget.objects.select_related("team", "key"), today())
    if keys.sees(by):
        return rows
    teams = keys.teams_seen(by)
    return rows.filter(Q(team__slug__in=teams) | Q(key__team__slug__in=teams))


def _managed(by: Caller, number: str) -> tuple[Caller, Budget]:
    """What `by` may in this moment, and a budget that it may change, locked until the transaction ends."""
    seen = find(by, number)
    if seen.key:
        by, _ = keys.below(by, seen.key.key_id)
    else:
        by, _ = keys.team_as_it_is(by, str(seen.team))
        require(by, MANAGE_TEAMS)
    locked = Budget.objects.select_for_update().filter(pk=seen.pk).first()
    if locked is None:
        raise _no_budget(by, number)
    return by, locked


def _keep(budget: Budget, bounds: Bounds) -> None:
    for name, value in bounds.items():
        setattr(budget, name, value)
    if budget.tokens is None and budget.money is None:
        raise BadRequest("A budget bounds 'tokens', 'money' or both: say how much of one of them.", param="tokens")
    try:
        with transaction.atomic():
            budget.save()
    except IntegrityError:
        whose = f"key '{budget.key.key_id}'" if budget.key else f"team '{budget.team}'"
        message = f"The {whose} has a budget for the period '{budget.period}' already: change that one."
        raise Conflict(message, code="budget_exists") from None


def _check(by: Caller, budget: Budget) -> None:
    """Forbidden where a key may spend more than `by` now."""
    if budget.key:
        keys.check_spending(budget.key, by)


def _no_budget(by: Caller, number: str) -> NotFound:
    return keys.unseen(by)(f"There is no budget '{number[:32]}'.")
