"""Hashes of Redis, read whole. Pure."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")


def by_server(flat: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> dict[str, T]:
    """The reply of HGETALL with its values decoded."""
    return {name.decode(): decoder.decode(raw) for name, raw in zip(flat[::2], flat[1::2], strict=True)}
