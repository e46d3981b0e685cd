"""Refuses JSON that would hurt to decode, before it is decoded: too deep, too many values, numbers out of range.

Pure. Most bodies are settled by a few counts that run at memory speed; only what looks suspicious is scanned, slice
by slice so that the caller can let others run in between. What passes here can still be malformed: that is the
decoder's to say.
"""

import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import msgspec

from citadel.errors import BadRequest

SLICE = 1 << 16
"""Bytes looked at in one go: a few milliseconds at the worst."""

_SPACE = b" \t\r\n"
_BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_STEPS = bytes.maketrans(_BRACKETS, b"\x01\xff\x01\xff")  # as signed bytes: +1 opens, -1 closes
_DIGITS = bytes.maketrans(b"0123456789E", b"0000000000e")
_LONG = b"0" * (sys.float_info.max_10_exp - 99)
"""The fewest digits of a number that overflows with an exponent of two digits, or without one."""
_EXTREME = b"0e000"
MOST_EXTREME = 1000
"""Numbers with exponents of three digits that a body may hold: decoding one takes as long as hundreds of others."""


def verdicts(body: bytes, *, depth: int, values: int) -> Iterator[None]:
    """Raises BadRequest when `body` breaks a limit; yields wherever the caller may pause.

    `depth` counts nested arrays and objects, `values` every value including the containers.
    """
    if not (body.count(b"{") + body.count(b"[") <= depth and len(body) < values):
        shape = Shape(depth, values)
        for start in range(0, len(body), SLICE):
            shape.feed(body[start : start + SLICE])
            yield
    check_text(body)
    yield
    digits = body.translate(_DIGITS, b"+-")
    is_extreme = b"0e" in digits and _EXTREME in digits  # the first is found quickly even in a sea of zeros
    is_long = len(digits) >= len(_LONG) and _LONG in digits
    has_surrogates = b"\\u" in body and (b"\\ud" in body or b"\\uD" in body)
    if not (is_extreme or is_long or has_surrogates):
        return
    yield
    if digits.count(_EXTREME) > MOST_EXTREME:
        yield from check_extremes(body)
    check_numbers(body, long=is_long)


class Shape:
    """Depth and number of values of a JSON text that comes in slices."""

    def __init__(self, depth: int, values: int):
        self.depth_limit = depth
        self.values_limit = values
        self.depth = 0
        self.values = 1
        self._quotes = 0
        self._in_string = False
        self._backslash = b""
        self._last = b""

    def feed(self, part: bytes) -> None:
        """Takes the next slice; BadRequest as soon as a limit is passed."""
        outside = self.outside_strings(part)
        opened = outside.count(b"[") + outside.count(b"{")
        seam = self._last + outside
        self._last = outside[-1:] if outside else self._last
        empty = seam.count(b"[]") + seam.count(b"{}")
        self.values += outside.count(b",") + opened - empty
        if self.values > self.values_limit:
            raise self._too_many()
        if not opened:
            self.depth -= outside.count(b"]") + outside.count(b"}")
            return
        steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
        levels = list(accumulate(steps, initial=self.depth))
        self.depth = levels[-1]
        if max(levels) > self.depth_limit:
            raise BadRequest(f"The body is nested deeper than {self.depth_limit} levels.", code="json_too_deep")

    def outside_strings(self, part: bytes) -> bytes:
        """The next slice with each string replaced by a 0 and no white space, so that `[""]` does not look empty."""
        text = self._backslash + part
        trailing = len(text) - len(text.rstrip(b"\\"))
        self._backslash = b"\\" if trailing % 2 else b""
        if self._backslash:
            text = text[:-1]
        parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        quotes = len(parts) - 1
        self._quotes += quotes
        if self._quotes > 4 * self.values_limit:  # a string is a value, or names one
            raise self._too_many()
        outside = b"0".join(parts[self._in_string :: 2])
        if quotes % 2:
            self._in_string = not self._in_string
        if self._in_string and quotes:  # the last of them begins a string
            outside += b"0"
        return outside.translate(None, _SPACE)

    def _too_many(self) -> BadRequest:
        return BadRequest(f"The body holds more than {self.values_limit} JSON values.", code="json_too_large")


def check_text(body: bytes) -> None:
    """Refuses bytes that aren't UTF-8 (RFC 8259, 8.1)."""
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not valid UTF-8 (at byte {error.start}).", code="invalid_json") from None


def check_extremes(body: bytes) -> Iterator[None]:
    """Refuses more than `MOST_EXTREME` numbers with exponents of three digits. What stands in texts is none of them."""
    shape, count, seam = Shape(sys.maxsize, sys.maxsize), 0, b""
    for start in range(0, len(body), SLICE):
        digits = seam + shape.outside_strings(body[start : start + SLICE]).translate(_DIGITS, b"+-")
        count += digits.count(_EXTREME)
        if count > MOST_EXTREME:
            raise BadRequest(f"The body holds more than {MOST_EXTREME} numbers of extreme size.", code="json_too_large")
        seam = digits[1 - len(_EXTREME) :]
        yield


def check_numbers(body: bytes, *, long: bool) -> None:
    """Refuses numbers that overflow a double and escapes of lone surrogates, wherever in the body they stand.

    A decoder with a schema skips what it doesn't know, a server behind us may not. Both are rare enough to decode
    the whole when the bytes look as if there were one.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if long and _overflows(value):
        raise BadRequest("The body holds a number that is out of range.", code="invalid_json")


def _overflows(value: Any) -> bool:
    """Whether there is a whole number in it that no double can hold; of others the decoder says so itself."""
    if isinstance(value, (list, dict)):
        return any(map(_overflows, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > sys.float_info.max
