"""Amounts of money: what is written is what is kept and told, or is refused by its field's name."""

import json
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.spending.amounts import MOST_BUDGET, MOST_PRICE, amount_of, bound_of, told
from citadel.errors import BadRequest

PRICES = st.decimals(0, MOST_PRICE, places=9, allow_nan=False)


@given(PRICES)
def test_an_amount_is_kept_and_told_exactly(amount: Decimal) -> None:
    plain = f"{amount:f}"
    for written in (plain, f'"{plain}"'):
        found = amount_of(msgspec.Raw(written.encode()), "prompt")
        assert found == amount
        assert Decimal(told(found)) == amount
        assert amount_of(msgspec.Raw(json.dumps(told(found)).encode()), "prompt") == amount


@given(PRICES)
def test_it_is_told_by_plain_digits_without_needless_zeros(amount: Decimal) -> None:
    whole, point, places = told(amount).partition(".")
    assert whole.isdecimal()
    assert bool(point) == bool(places)
    assert not places.endswith("0")


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (b"0", "0"),
        (b"-0.0", "0"),
        (b"1e3", "1000"),
        (b"1e-9", "0.000000001"),
        (b"0.1", "0.1"),
        (b'"0012.500"', "12.5"),
        (b"8999999.999999999", "8999999.999999999"),
        (b"9000000", "9000000"),
    ],
)
def test_numbers_and_strings_are_taken_by_their_digits(written: bytes, amount: str) -> None:
    found = bound_of(msgspec.Raw(written), "money")
    assert found is not None
    assert told(found) == amount


BAD = (
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'" 1"',
    b'"1."',
    b'".5"',
    b'"+1"',
    b'"-1"',
    b'"1e3"',
    b'"1_000"',
    b'"1,5"',
    b'"NaN"',
    b'"sNaN"',
    b'"Infinity"',
    b'"\xd9\xa1"',  # a digit, elsewhere
    b'"\\u0031"',
    b"-1",
    b"-0.000000001",
    b"1e-10",
    b"0.0000000001",
    b"1.0000000000",
    b"1e400",
    b"1e-400",
    b'"' + b"1" * 10_000 + b'"',
    b"1" * 10_000,
)


@pytest.mark.parametrize("written", [*BAD, b"null", str(MOST_PRICE + 1).encode()])
def test_what_is_no_price_is_refused_by_name(written: bytes) -> None:
    with pytest.raises(BadRequest, match="'prompt'") as refused:
        amount_of(msgspec.Raw(written), "prompt")
    assert refused.value.param == "prompt"
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("written", [*BAD, str(MOST_BUDGET + 1).encode(), b"9000000.000000001"])
def test_what_is_no_bound_is_refused_by_name(written: bytes) -> None:
    with pytest.raises(BadRequest, match="'money'"):
        bound_of(msgspec.Raw(written), "money")


def test_null_and_nothing_are_no_bound() -> None:
    assert bound_of(msgspec.Raw(b"null"), "money") is None
    assert bound_of(msgspec.Raw(), "money") is None
