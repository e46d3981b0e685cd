"""The head of a token, read before anything is believed of it (RFC 7515; what to refuse: RFC 8725). Pure."""

import base64
import binascii
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from citadel.errors import Unauthenticated

T = TypeVar("T")

LONGEST = 8192
"""Bytes of a token."""
INVALID = "The token is not valid."


class Head(msgspec.Struct, frozen=True):
    """What a head says that is of use here: by which algorithm and key the token is signed, and of what kind it is."""

    alg: str
    kid: str = ""
    typ: str = ""

    @property
    def kind(self) -> str:
        """Its media type in short (RFC 7515, 4.1.9); nothing where it says none."""
        return self.typ.lower().removeprefix("application/")


class _Refused(msgspec.Struct):
    """What a head must not say: a key that it brings itself, or an extension that has to be understood."""

    jwk: Any = UNSET
    jku: Any = UNSET
    x5c: Any = UNSET
    x5u: Any = UNSET
    crit: Any = UNSET
    b64: Any = UNSET


class Claimed(msgspec.Struct, frozen=True):
    """Who a token says has made it and whom it is for, which only tells by what it is to be verified."""

    iss: str = ""
    aud: str | list[str] = ""

    def is_for(self, audience: str) -> bool:
        """Whether it says that it is for them, among others or alone."""
        return audience == self.aud if isinstance(self.aud, str) else audience in self.aud


def head_of(token: bytes) -> Head:
    """The head; Unauthenticated where it is none that may be taken."""
    for name, value in msgspec.structs.asdict(_decoded(token, 0, _Refused)).items():
        if value is not UNSET:
            raise invalid(f"its head says '{name}', which is not taken from a token")
    return _decoded(token, 0, Head)


def claimed_of(token: bytes) -> Claimed:
    """What it says of itself before anything is verified; Unauthenticated where that can't be read."""
    return _decoded(token, 1, Claimed)


def invalid(reason: str) -> Unauthenticated:
    """The error for a token; the reason tells its holder nothing that the token doesn't say."""
    return Unauthenticated(f"{INVALID[:-1]}: {reason}.", code="invalid_token")


def _decoded(token: bytes, number: int, kind: type[T]) -> T:
    parts = token.split(b".") if len(token) <= LONGEST else ()
    if len(parts) != 3:
        raise invalid("it is no signed token of three parts")
    part = parts[number]
    try:
        return msgspec.json.decode(base64.b64decode(part + b"=" * (-len(part) % 4), b"-_", validate=True), type=kind)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("it can't be read") from None
