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
_LONG = b"0" * (sys.float_info.max_10_exp + 1)
"""The fewest digits of a number that overflows without an exponent."""


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
    check_numbers(body)


class Shape:
    """Depth and number of values of a JSON text that comes in slices."""

    def __init__(self, depth: int, values: int):
        self.depth_limit = depth
        self.values_limit = values
        self.depth = 0
        self.values = 1
        self._in_string = False
        self._backslash = b""
        self._last = b""

    def feed(self, part: bytes) -> None:
        """Takes the next slice; BadRequest as soon as a limit is passed."""
        outside = self._outside_strings(self._backslash + part)
        opened = outside.count(b"[") + outside.count(b"{")
        seam = self._last + outside
        self._last = outside[-1:] if outside else self._last
        empty = seam.count(b"[]") + seam.count(b"{}")
        self.values += outside.count(b",") + opened - empty
        if self.values > self.values_limit:
            raise BadRequest(f"The body holds more than {self.values_limit} JSON values.", code="json_too_large")
        if not opened:
            self.depth -= outside.count(b"]") + outside.count(b"}")
            return
        steps = array("b", outside.translate(_STEPS, _NOT_BRACKETS))
        levels = list(accumulate(steps, initial=self.depth))
        self.depth = levels[-1]
        if max(levels) > self.depth_limit:
            raise BadRequest(f"The body is nested deeper than {self.depth_limit} levels.", code="json_too_deep")

    def _outside_strings(self, text: bytes) -> bytes:
        """The text with each string replaced by a 0 and no white space, so that `[""]` does not look empty."""
        trailing = len(text) - len(text.rstrip(b"\\"))
        self._backslash = b"\\" if trailing % 2 else b""
        if self._backslash:
            text = text[:-1]
        parts = text.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"0".join(parts[self._in_string :: 2])
        if len(parts) % 2 == 0:
            self._in_string = not self._in_string
            if self._in_string:
                outside += b"0"
        return outside.translate(None, _SPACE)


def check_text(body: bytes) -> None:
    """Refuses bytes that aren't UTF-8 (RFC 8259, 8.1)."""
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not valid UTF-8 (at byte {error.start}).", code="invalid_json") from None


def check_numbers(body: bytes) -> None:
    """Refuses numbers that overflow a double and escapes of lone surrogates, wherever in the body they stand.

    A decoder with a schema skips what it doesn't know, a server behind us may not. Both are rare enough to decode
    the whole when the bytes look as if there were one.
    """
    digits = body.translate(_DIGITS, b"+")
    if not (b"0e000" in digits or _LONG in digits or b"\\ud" in body or b"\\uD" in body):
        return
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if _LONG in digits and _overflows(value):
        raise BadRequest("The body holds a number that is out of range.", code="invalid_json")


def _overflows(value: Any) -> bool:
    """Whether there is a whole number in it that no double can hold; of others the decoder says so itself."""
    if isinstance(value, (list, dict)):
        return any(map(_overflows, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > sys.float_info.max
