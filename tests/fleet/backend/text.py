"""Deterministic text, JSON and vectors out of a request, so that equal requests get equal answers."""

from __future__ import annotations

import hashlib
import math
import zlib
from array import array
from functools import lru_cache
from typing import Any

import msgspec

# Some words have characters of 2, 3 and 4 bytes, so that packets can end inside of one.
_TEXT = (
    "river stone café light north quiet naïve garden seven window 日本 copper morning über paper signal "
    "harbour 🙂 winter engine señor silver forest Ωmega bridge letter ocean żółw candle mountain 東京 field"
)
WORDS = _TEXT.split()
_WIDE = [word for word in WORDS if not word.isascii()]


def seed_of(value: Any) -> int:
    """A number that depends on nothing but the JSON value."""
    return zlib.crc32(msgspec.json.encode(value))


@lru_cache(maxsize=4096)
def words(seed: int, count: int) -> tuple[str, ...]:
    """``count`` tokens, every one but the first with the space before it. Each fourth has a character of many bytes."""
    tokens = []
    for position in range(count):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF  # the linear congruential generator of ISO C
        index = seed >> 8
        word = WORDS[index % len(WORDS)] if position % 4 else _WIDE[index % len(_WIDE)]
        tokens.append(f" {word}" if position else word)
    return tuple(tokens)


def pieces(text: str, count: int) -> list[str]:
    """``text`` cut into at most ``count`` parts of nearly equal length, none empty."""
    size = max(1, math.ceil(len(text) / max(1, count)))
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def count_tokens(value: Any) -> int:
    """The length in tokens: words of a text, members of a token list, the sum over anything else."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):
        return sum(count_tokens(member) for member in value.values())
    if isinstance(value, list):
        return sum(1 if isinstance(member, int) else count_tokens(member) for member in value)
    return 0


def example(schema: Any, depth: int = 0) -> Any:
    """A value that the JSON schema allows (its common part: type, properties, items, enum, const, anyOf)."""
    if not isinstance(schema, dict) or depth > 16:
        return {}
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example(schema[key][0], depth + 1)
    return _example_of_type(schema, depth)


def _example_of_type(schema: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: example(member, depth + 1) for name, member in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}), depth + 1)] * max(1, schema.get("minItems", 1))
    numbers = {"integer": schema.get("minimum", 7), "number": schema.get("minimum", 1.5)}
    return {**numbers, "boolean": True, "null": None}.get(kind, "naïve example")


@lru_cache(maxsize=1024)
def unit_vector(text: str, dimensions: int) -> tuple[float, ...]:
    """A vector of length 1 by the hash of ``text``. Fewer dimensions are the beginning of more, made length 1 again."""
    numbers = array("h", hashlib.shake_128(text.encode()).digest(2 * dimensions))
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return tuple(number / length for number in numbers)
