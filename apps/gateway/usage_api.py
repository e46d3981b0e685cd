"""`/api/v1/usage`: what a team or a key has used, day by day, for who sees that team's keys."""

from datetime import date
from typing import Annotated

import msgspec
from django.db.models import QuerySet, Sum
from ninja import Router
from pydantic import Field

from apps.gateway.access.keys import granting
from apps.gateway.limits.budgets import TEAM
from apps.gateway.models import Spend
from apps.gateway.requests import GatewayRequest
from apps.gateway.spending.amounts import told
from apps.gateway.spending.granting import NOTHING
from citadel.answer import Answer, json_answer
from citadel.caller import Caller
from citadel.database import in_thread
from citadel.description import answers
from citadel.errors import BadRequest, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NumberCursor, Page
from citadel.permissions import SEE_KEYS, require_somewhere

router = Router(tags=["Usage"])

Day = Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
LAST = date.max.toordinal()


class UsageRow(msgspec.Struct):
    """What a team, or a key, has used on a day (UTC); money as a decimal number."""

    day: str
    team: str | None
    key_id: str | None
    requests: int
    tokens: int
    money: str


class UsageTotal(msgspec.Struct):
    """The sums of all days that were asked for, not of the page alone."""

    requests: int
    tokens: int
    money: str


class UsageRows(msgspec.Struct):
    """A page of them, newest first; a day on which nothing was used has none."""

    total: UsageTotal
    data: list[UsageRow]
    next: str | None


@router.get("", openapi_extra=answers(UsageRows, BadRequest, NotFound, Unavailable))
async def usage(
    request: GatewayRequest,
    team: str | None = None,
    key_id: str | None = None,
    since: Day | None = None,
    until: Day | None = None,
    limit: Limit = USUAL,
    cursor: NumberCursor | None = None,
) -> Answer:
    """What a team or one key has used, from the day `since` to the day `until` (UTC, like 2026-01-31), both included;
    the caller's own team unless one is named.
    """
    require_somewhere(request.auth, SEE_KEYS)
    if team is not None and key_id is not None:
        raise BadRequest("Usage is of a team or of a key: name one of them.", param="key_id")
    days = _day("since", since) or date.min, _day("until", until) or date.max
    if days[0] > days[1]:
        raise BadRequest("'since' is a day before 'until', or the same.", param="since")
    page = Page.asked(limit, cursor)
    total, rows = await in_thread(_used, request.auth, team, key_id, days, page)
    return json_answer({"total": total, **page.of(rows, _row, lambda spend: str(spend.day.toordinal()))})


def _day(name: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        raise BadRequest(f"'{name}' is a day like 2026-01-31.", param=name) from None


def _used(
    by: Caller, team: str | None, key_id: str | None, days: tuple[date, date], page: Page
) -> tuple[UsageTotal, list[Spend]]:
    rows = _of(by, team, key_id).filter(day__range=days)
    total = _total(rows)
    if page.number is not None:
        rows = rows.filter(day__lt=date.fromordinal(max(1, min(page.number, LAST))))
    return total, list(rows.order_by("-day")[: page.limit + 1])


def _of(by: Caller, team: str | None, key_id: str | None) -> QuerySet[Spend]:
    """Of whom is asked; NotFound where `by` sees no such key or team."""
    if key_id is not None:
        return Spend.objects.filter(holder=granting.find(by, key_id).key_id)
    named = by.team if team is None else team
    return Spend.objects.filter(holder=TEAM + granting.find_team(by, named).slug)


def _total(rows: QuerySet[Spend]) -> UsageTotal:
    sums = rows.aggregate(Sum("requests"), Sum("tokens"), Sum("money"))
    requests, tokens, money = sums.values()
    return UsageTotal(int(requests or 0), int(tokens or 0), told(money or NOTHING))


def _row(spend: Spend) -> UsageRow:
    team = spend.holder.removeprefix(TEAM) if spend.holder.startswith(TEAM) else None
    key_id = spend.holder if team is None else None
    return UsageRow(spend.day.isoformat(), team, key_id, spend.requests, spend.tokens, told(spend.money))
