"""`/api/v1/prices`: what models cost, for all to see who may use them, set by administrators."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

import msgspec
from django.db.models import QuerySet
from ninja import Router
from pydantic import Field

from apps.gateway.access.keys import granting
from apps.gateway.models import Price
from apps.gateway.requests import GatewayRequest
from apps.gateway.spending.amounts import PriceMoney, amount_of, told
from citadel.answer import Answer, json_answer
from citadel.caller import Caller, plain_name
from citadel.database import in_thread
from citadel.decoding import NO_NUL, decode
from citadel.description import answers
from citadel.errors import BadRequest, NotFound, Unavailable
from citadel.pages import USUAL, Limit, NameCursor, Page
from citadel.permissions import MANAGE_TEAMS, may, require

router = Router(tags=["Prices"])

LONGEST_NAME = 255
Name = Annotated[str, Field(max_length=LONGEST_NAME, pattern=NO_NUL)]


class NewPrice(msgspec.Struct, forbid_unknown_fields=True):
    """What a model costs: a million prompt tokens, a million answer tokens, a second that a server works for a request.

    Decimal numbers, best written as strings, with nine decimals at most; what isn't said is free.
    """

    prompt: PriceMoney = msgspec.field(default_factory=lambda: _FREE)
    completion: PriceMoney = msgspec.field(default_factory=lambda: _FREE)
    server_second: PriceMoney = msgspec.field(default_factory=lambda: _FREE)


class PriceRow(msgspec.Struct):
    """The price of a model, in decimal numbers."""

    model: str
    prompt: str
    completion: str
    server_second: str


class PriceRows(msgspec.Struct):
    """A page of them."""

    data: list[PriceRow]
    next: str | None


class Unpriced(msgspec.Struct):
    """It costs nothing any more."""

    status: str
    model: str


@router.get("", openapi_extra=answers(PriceRows, BadRequest, Unavailable))
async def prices(request: GatewayRequest, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """Prices of the models that the caller may use, by their names; a model without one is free."""
    page = Page.asked(limit, cursor)
    rows = await in_thread(_listed, request.auth, page)
    return json_answer(page.of(rows, _row, lambda price: price.model))


@router.get("/{path:model}", openapi_extra=answers(PriceRow, NotFound, Unavailable))
async def price(request: GatewayRequest, model: str) -> Answer:
    """The price of a model, by either of its names: `llama3.2` and `llama3.2:latest` are one."""
    return json_answer(_row(await in_thread(_find, request.auth, model)))


@router.put("/{path:model}", openapi_extra=answers(PriceRow, BadRequest, NotFound, Unavailable, body=NewPrice))
async def set_price(request: GatewayRequest, model: Name) -> Answer:
    """Sets what a model costs from now on, whether a server has it yet or not; what was spent stays as it was."""
    require(request.auth, MANAGE_TEAMS)
    asked = decode(request.body, NewPrice, needed=True)
    amounts = {name: amount_of(written, name) for name, written in msgspec.structs.asdict(asked).items()}
    name = plain_name(model)
    if not name:
        raise BadRequest("Invalid value for 'model': a tag alone is no name.", param="model")
    return json_answer(_row(await in_thread(_set, request.auth, name, amounts)))


@router.delete("/{path:model}", openapi_extra=answers(Unpriced, NotFound, Unavailable))
async def delete_price(request: GatewayRequest, model: str) -> Answer:
    """Makes a model free."""
    require(request.auth, MANAGE_TEAMS)
    await in_thread(_delete, request.auth, model)
    return json_answer(Unpriced("deleted", plain_name(model)))


def _seen(by: Caller) -> QuerySet[Price]:
    """Which models there are beyond those that a key may use is not for it to know."""
    rows = Price.objects.all()
    return rows if by.models is None or may(by, MANAGE_TEAMS) else rows.filter(model__in=by.models)


def _listed(by: Caller, page: Page) -> list[Price]:
    return list(_seen(by).filter(model__gt=page.after).order_by("model")[: page.limit + 1])


def _find(by: Caller, model: str) -> Price:
    name = plain_name(model)
    found = None if "\0" in name else _seen(by).filter(model=name).first()
    if found is None:
        raise NotFound(f"There is no price of a model '{model[:LONGEST_NAME]}'.", param="model")
    return found


def _set(by: Caller, name: str, amounts: Mapping[str, Decimal]) -> Price:
    with granting.managing_teams(by):
        return Price.objects.update_or_create(amounts, model=name)[0]


def _delete(by: Caller, model: str) -> None:
    with granting.managing_teams(by):
        _find(by, model).delete()


def _row(price: Price) -> PriceRow:
    return PriceRow(price.model, *map(told, (price.prompt, price.completion, price.server_second)))


_FREE: msgspec.Raw = msgspec.Raw(b"0")
