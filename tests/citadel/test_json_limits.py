"""The limits on JSON, held against `json.loads` and a recursive count."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from citadel.errors import BadRequest
from citadel.json_limits import Shape, verdicts

SPECIAL = st.sampled_from(['"', "\\", '\\"', "[]", "{}", "[", "}", ",", ":", " ", "\n", "é", "字", "\x00", "0e999"])
TEXT = st.text(max_size=5) | st.lists(SPECIAL, max_size=4).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", "\t: ")]))
    text = json.dumps(
        draw(VALUES),
        ensure_ascii=draw(st.booleans()),
        separators=separators,
        indent=draw(st.sampled_from([None, None, 0, 2])),
    )
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    return (space + text + space).encode()


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def values_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(values_of, children))


def refusal(body: bytes, *, depth: int = 64, values: int = 100_000) -> str | None:
    try:
        for _ in verdicts(body, depth=depth, values=values):
            pass
    except BadRequest as error:
        assert error.status_code == 400
        return error.code
    return None


@given(documents(), st.integers(1, 8), st.integers(1, 30))
@example(b"[" * 5 + b"]" * 5, 5, 30)
@example(b'["\\\\",{"\\"":[]}]', 3, 5)
def test_the_verdict_is_that_of_a_plain_count(body: bytes, depth: int, values: int) -> None:
    value = json.loads(body)
    broken = set()
    if depth_of(value) > depth:
        broken.add("json_too_deep")
    if values_of(value) > values:
        broken.add("json_too_large")
    said = refusal(body, depth=depth, values=values)
    assert said in broken if broken else said is None


@given(documents(), st.lists(st.integers(0, 400), max_size=8))
@example(b'["a",[""]]', [2, 7])
def test_slices_may_end_anywhere(body: bytes, cuts: list[int]) -> None:
    shape = Shape(10**6, 10**6)
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})
    for start, end in zip([0, *ends], ends, strict=False):
        shape.feed(body[start:end])
    assert shape.values == values_of(json.loads(body))
    assert shape.depth == 0


@given(documents(), st.lists(st.integers(0, 400), max_size=8))
def test_a_slice_passes_the_depth_where_the_whole_does(body: bytes, cuts: list[int]) -> None:
    deepest = depth_of(json.loads(body))
    ends = sorted({min(cut, len(body)) for cut in cuts} | {len(body)})

    def feed(limit: int) -> None:
        shape = Shape(limit, 10**6)
        for start, end in zip([0, *ends], ends, strict=False):
            shape.feed(body[start:end])

    feed(deepest)
    if deepest:
        with pytest.raises(BadRequest, match="nested deeper"):
            feed(deepest - 1)


@given(st.binary(max_size=300) | documents().flatmap(lambda whole: st.sampled_from([whole[1:], whole[:-1], whole * 2])))
def test_whatever_comes_there_is_a_verdict(body: bytes) -> None:
    refusal(body, depth=3, values=20)


def test_a_bomb_is_refused_long_before_its_end() -> None:
    steps = verdicts(b"[" * 10_000_000, depth=64, values=100_000)
    with pytest.raises(BadRequest):
        next(steps)


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,3})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)


@given(NUMBERS, st.sampled_from([b"%s", b"[1, %s]", b'{"a": {"unknown": [%s]}}']))
@example("1e400", b"%s")
@example("-1E+0400", b"[%s]")
@example("1e308", b"%s")
@example("1" * 308, b"[%s]")
@example("1" * 309, b"[%s]")
@example("9" * 309, b"[%s]")
@example("-" + "1" * 400, b"[%s]")
@example("1" * 400 + ".5", b"[%s]")
@example("1" * 5000, b"[%s]")
@example("0." + "1" * 400, b"[%s]")
@example("1" + "0" * 250 + "e99", b"[%s]")
@example("-1" + "0" * 300 + "E+9", b"%s")
@example("1" + "0" * 209 + ".5e99", b"[%s]")
@example("1" + "0" * 209 + "e98", b"[%s]")
@example("1" + "0" * 300 + "e-9", b"[%s]")
def test_numbers_that_overflow_are_refused_wherever_they_stand(number: str, around: bytes) -> None:
    overflows = math.isinf(float(number))
    assert (refusal(around % number.encode()) == "invalid_json") is overflows


def test_long_digits_in_a_text_are_no_number() -> None:
    assert refusal(b'{"%s": "%s"}' % (b"1" * 400, b"2" * 5000)) is None


@pytest.mark.parametrize("escape", [b"\\ud800", b"\\uDFFF", b"\\ud800\\u0041", b"\\udc00\\ud800"])
def test_lone_surrogates_are_refused(escape: bytes) -> None:
    assert refusal(b'{"a": "' + escape + b'"}') == "invalid_json"


def test_pairs_of_surrogates_and_what_only_looks_like_one_pass() -> None:
    assert refusal(b'["\\ud83d\\ude00", "\\\\ud800"]') is None


@given(st.binary(min_size=1, max_size=20))
def test_bytes_that_are_no_utf8_are_refused(inside: bytes) -> None:
    body = b'"' + inside.replace(b"\\", b"").replace(b'"', b"") + b'"'
    try:
        body.decode()
    except UnicodeDecodeError:
        assert refusal(body) == "invalid_json"
    else:
        assert refusal(body) is None
