"""What a trouble is, and how it is written.

A trouble is a small frozen value with a name. It is written as JSON, ``{"die": {"at": "chunk:3", "how": "rst"}}``, or
short, ``die chunk:3 rst`` (values in the order of the fields, or ``field=value``). Several go together: more members
of the JSON object, or ``;`` between the short ones.
"""

from __future__ import annotations

import shlex
from typing import Any, ClassVar

import msgspec

from ..answer import Answer, Point
from ..request import Request


class TroubleSpecError(ValueError):
    """A behaviour that can't be understood; the message says what is allowed."""


class Trouble(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to misbehave. Subclasses register under ``name`` and change the answer in ``apply``."""

    name: ClassVar[str] = ""
    scope: ClassVar[str] = "request"  # or "connection", or "listener": what it happens to

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Change ``answer`` (in place) to what this trouble makes of it."""


CATALOGUE: dict[str, type[Trouble]] = {}


def trouble(name: str) -> Any:
    """Class decorator: puts a trouble into the catalogue under ``name``."""

    def register(cls: type[Trouble]) -> type[Trouble]:
        cls.name = name
        CATALOGUE[name] = cls
        return cls

    return register


def parse(spec: str | dict[str, Any]) -> tuple[Trouble, ...]:
    """The troubles of a written behaviour, JSON or short; raises TroubleSpecError."""
    if isinstance(spec, str):
        text = spec.strip()
        if not text.startswith("{"):
            return tuple(_short(part) for part in text.split(";") if part.strip())
        try:
            spec = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise TroubleSpecError(f"the behaviour is no JSON object: {error}") from error
    return tuple(_make(name, fields) for name, fields in spec.items())


def _short(text: str) -> Trouble:
    try:
        name, *values = shlex.split(text)
    except ValueError as error:
        raise TroubleSpecError(f"{text!r}: {error}") from error
    names = iter(CATALOGUE[name].__struct_fields__ if name in CATALOGUE else ())
    fields: dict[str, Any] = {}
    for value in values:
        key, sign, rest = value.partition("=")
        if sign:
            fields[key] = rest
            continue
        try:
            fields[next(names)] = value
        except StopIteration:
            raise TroubleSpecError(f"{name} takes no further value: {value!r} is one too many") from None
    return _make(name, fields)


def _make(name: str, fields: Any) -> Trouble:
    if name not in CATALOGUE:
        raise TroubleSpecError(f"no behaviour is named {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    try:
        made: Trouble = msgspec.convert(fields or {}, CATALOGUE[name], strict=False)
    except msgspec.ValidationError as error:
        allowed = ", ".join(CATALOGUE[name].__struct_fields__) or "none"
        raise TroubleSpecError(f"{name}: {error} (fields: {allowed})") from error
    for field in ("at",):
        if isinstance(value := getattr(made, field, None), str):
            _check_point(name, value)
    return made


def _check_point(name: str, text: str) -> None:
    try:
        Point.parse(text)
    except ValueError as error:
        raise TroubleSpecError(f"{name}: {error}") from error
