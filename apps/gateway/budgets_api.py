"""`/api/v1/budgets`: what teams and keys may spend in a day, a week, a month or at all, and what they have spent."""

from datetime import UTC, date, datetime, time
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, UnsetType
from ninja import Router

from apps.gateway.limits.budgets import ends
from apps.gateway.requests import GatewayRequest
from apps.gateway.spending import granting
from apps.gateway.spending.amounts import BudgetMoney, bound_of, told
from citadel.answer import Answer, json_answer
from citadel.caller import MOST_TOKENS, Caller, Period
from citadel.database import in_thread
from citadel.decoding import NO_NUL, decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NumberCursor, Page
from citadel.permissions import MANAGE_KEYS, MANAGE_TEAMS, SEE_KEYS, may, require_somewhere

router = Router(tags=["Budgets"])

Team = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NO_NUL)]
KeyId = Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern=NO_NUL)]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
PERIODS: tuple[Period, ...] = get_args(Period)
NamedPeriod = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PERIODS)})]


class NewBudget(msgspec.Struct, forbid_unknown_fields=True):
    """What a team or a key may spend in each `period` of the calendar (UTC, weeks from Monday): tokens, money or both.

    Money is a decimal number, best written as a string, with nine decimals at most. Null is no bound, 0 is nothing.
    """

    period: NamedPeriod
    team: Team | None = None
    key_id: KeyId | None = None
    tokens: Tokens | None = None
    money: BudgetMoney = msgspec.field(default_factory=msgspec.Raw)


class ChangedBudget(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be another than it is; whose budget it is and its period stay."""

    tokens: Tokens | UnsetType | None = UNSET
    money: BudgetMoney = msgspec.field(default_factory=msgspec.Raw)


class Spent(msgspec.Struct):
    """What was used in the current period, as the records say."""

    tokens: int
    money: str


class BudgetRow(msgspec.Struct):
    """A budget of a team or of a key. `begins` and `ends` are those of the current period, which a total has not; times
    in seconds since the epoch, money as decimal numbers.
    """

    id: int
    team: str | None
    key_id: str | None
    period: Period
    tokens: int | None
    money: str | None
    spent: Spent
    begins: float | None
    ends: float | None
    created: float


class BudgetRows(msgspec.Struct):
    """A page of them, newest first."""

    data: list[BudgetRow]
    next: str | None


class Deleted(msgspec.Struct):
    """It is gone."""

    status: str
    id: int


@router.get("", openapi_extra=answers(BudgetRows, BadRequest, NotFound, Unavailable))
async def budgets(
    request: GatewayRequest,
    team: str | None = None,
    key_id: str | None = None,
    limit: Limit = USUAL,
    cursor: NumberCursor | None = None,
) -> Answer:
    """Budgets, newest first; of one `team` and its keys, or of one key, where it is named."""
    require_somewhere(request.auth, SEE_KEYS)
    page = Page.asked(limit, cursor)
    rows = await in_thread(granting.listed, request.auth, team, key_id, page)
    return json_answer(page.of(rows, _row, lambda budget: str(budget.pk)))


@router.post("", openapi_extra=answers(BudgetRow, BadRequest, NotFound, Conflict, Unavailable, body=NewBudget))
async def create_budget(request: GatewayRequest) -> Answer:
    """A new budget, which every worker knows within a second."""
    _require_some_management(request.auth)
    asked = decode(request.body, NewBudget)
    bounds = {"tokens": asked.tokens, "money": bound_of(asked.money, "money")}
    period = _period(asked.period)
    made = await in_thread(granting.create, request.auth, asked.team, asked.key_id, period, bounds)
    return json_answer(_row(made))


@router.get("/{budget_id}", openapi_extra=answers(BudgetRow, NotFound, Unavailable))
async def budget(request: GatewayRequest, budget_id: str) -> Answer:
    """One budget."""
    require_somewhere(request.auth, SEE_KEYS)
    return json_answer(_row(await in_thread(granting.find, request.auth, budget_id)))


@router.patch(
    "/{budget_id}", openapi_extra=answers(BudgetRow, BadRequest, NotFound, Conflict, Unavailable, body=ChangedBudget)
)
async def change_budget(request: GatewayRequest, budget_id: str) -> Answer:
    """Changes what is named; what has been spent stays spent."""
    _require_some_management(request.auth)
    asked = decode(request.body, ChangedBudget, needed=True)
    bounds: granting.Bounds = {
        **({} if asked.tokens is UNSET else {"tokens": asked.tokens}),
        **({"money": bound_of(asked.money, "money")} if bytes(asked.money) else {}),
    }
    return json_answer(_row(await in_thread(granting.change, request.auth, budget_id, bounds)))


@router.delete("/{budget_id}", openapi_extra=answers(Deleted, NotFound, Conflict, Unavailable))
async def delete_budget(request: GatewayRequest, budget_id: str) -> Answer:
    """Takes a budget away: from then on it bounds nothing."""
    _require_some_management(request.auth)
    await in_thread(granting.delete, request.auth, budget_id)
    return json_answer(Deleted("deleted", int(budget_id)))


def _require_some_management(by: Caller) -> None:
    """Forbidden unless `by` may set budgets at all: of teams, or of keys somewhere."""
    if not may(by, MANAGE_TEAMS):
        require_somewhere(by, MANAGE_KEYS)


def _period(name: str) -> Period:
    """BadRequest says which periods there are."""
    for period in PERIODS:
        if period == name:
            return period
    raise BadRequest(f"Invalid value for 'period': it is one of {', '.join(PERIODS)}.", param="period")


def _row(budget: Any) -> BudgetRow:
    last = ends(budget.period, budget.since)
    return BudgetRow(
        budget.pk,
        budget.team.slug if budget.team else None,
        budget.key.key_id if budget.key else None,
        budget.period,
        budget.tokens,
        None if budget.money is None else told(budget.money),
        Spent(int(budget.spent_tokens or 0), told(budget.spent_money or granting.NOTHING)),
        _seconds(budget.since) if last else None,
        _seconds(last) if last else None,
        budget.created.timestamp(),
    )


def _seconds(day: date) -> float:
    """The moment at which a day begins."""
    return datetime.combine(day, time.min, UTC).timestamp()
