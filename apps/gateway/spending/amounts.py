"""Amounts of money, exactly as they are written: to billionths, never by binary fractions. Pure."""

import re
from decimal import Decimal
from typing import Annotated

import msgspec

from citadel.caller import MOST_MONEY
from citadel.errors import BadRequest

PLACES = 9
MOST_BUDGET = Decimal(MOST_MONEY)
MOST_PRICE = Decimal("999999999.999999999")
"""Of a column that holds a price."""
_WRITTEN = re.compile(
    rb'"(?P<text>[0-9]{1,9}(\.[0-9]{1,9})?)"|(?P<number>-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?)'
)
_PLAIN: dict[str, object] = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"}


def _described(most: Decimal) -> list[dict[str, object]]:
    bound = "maximum" if most == int(most) else "exclusiveMaximum"  # a double rounds a price's bound up
    return [_PLAIN, {"type": "number", "minimum": 0, bound: float(most)}]


BudgetMoney = Annotated[
    msgspec.Raw, msgspec.Meta(extra_json_schema={"anyOf": [*_described(MOST_BUDGET), {"type": "null"}]})
]
"""Of a body that is being decoded: what was written, for `bound_of`; nothing where nothing was."""
PriceMoney = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"anyOf": _described(MOST_PRICE)})]
"""Likewise, for `amount_of`."""


def bound_of(written: msgspec.Raw, name: str, most: Decimal = MOST_BUDGET) -> Decimal | None:
    """The amount, or None for null and where nothing was written; raises as `amount_of`."""
    return None if bytes(written) in (b"", b"null") else amount_of(written, name, most)


def amount_of(written: msgspec.Raw, name: str, most: Decimal = MOST_PRICE) -> Decimal:
    """The amount that a JSON string or number says; BadRequest names the field where it is none from 0 to `most`, or
    has more than nine decimals.
    """
    found = _WRITTEN.fullmatch(bytes(written))
    if found:
        amount = Decimal((found["text"] or found["number"]).decode())
        exponent = amount.as_tuple().exponent
        if isinstance(exponent, int) and exponent >= -PLACES and 0 <= amount <= most:
            return amount.copy_abs()  # there is no less than nothing
    raise BadRequest(
        f"Invalid value for '{name}': an amount is a number from 0 to {told(most)} with at most {PLACES} decimals, "
        'such as "12.50".',
        param=name,
    )


def told(amount: Decimal) -> str:
    """An amount as the API says it: exactly, by plain digits, without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
