"""Reads the body of a request into a type, and says what is wrong with it in the client's own words."""

import re
from typing import Any, TypeVar

import msgspec

from citadel.errors import BadRequest

T = TypeVar("T")

NO_NUL = "^[^\\u0000]*$"
"""The pattern of text that goes into a database: PostgreSQL keeps no NUL."""
NOT_EMPTY = {"minItems": 1}
"""What the description says of lists that `check_restrictions` looks at."""

_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_ANY_KEY = "[...]"
"""How msgspec names a value of a mapping, of whatever key: the field is the mapping."""
_MOMENT = re.compile("Invalid RFC3339 |Expected `[^`]*datetime")
_UNKNOWN = re.compile(r"contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"missing required field `(.*?)`")


def decode(body: bytes, kind: type[T], *, needed: bool = False) -> T:
    """What a body says; BadRequest names the field that is wrong.

    An empty one says nothing, as `{}` does, unless it is `needed`: where no field has to be said either, who sends none
    has forgotten it.
    """
    if needed and not body:
        raise BadRequest("The body is missing: send a JSON object.", code="invalid_json")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise refusal(error) from None
    except (RecursionError, UnicodeDecodeError):
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None


def decode_object(body: bytes) -> dict[str, Any]:
    """The same where any object will do."""
    return decode(body, dict[str, Any])


def check_restrictions(asked: msgspec.Struct, *names: str) -> None:
    """BadRequest where one of the lists with these names is empty.

    Null is no restriction. Who has filtered a list down to nothing has meant the opposite, and gets neither.
    """
    for name in names:
        if getattr(asked, name) == []:
            message = f"Invalid value for '{name}': it is empty: name some, or send null for all."
            raise BadRequest(message, param=name)


def refusal(error: msgspec.DecodeError, whole: str = "") -> BadRequest:
    """The client's error for what msgspec says, with the field in `param`. `whole` names the field that a rule about
    the whole body is about.
    """
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadRequest(f"The body is not valid JSON: {text}.", code="invalid_json")
    place = _PLACE.search(text)
    path = place[1].partition(_ANY_KEY)[0] if place else ""
    reason = text[: place.start()] if place else text
    if missing := _MISSING.search(reason):
        param = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"Missing required field '{param}'.", param=param, code="missing_required_parameter")
    if unknown := _UNKNOWN.search(reason):
        param = f"{path}.{unknown[1]}" if path else unknown[1]
        return BadRequest(f"Unknown field '{param[:255]}'.", param=param[:255], code="unknown_parameter")
    if not path and not reason.startswith("Expected"):
        path = whole
    if not path:
        return BadRequest(f"The body must be a JSON object: {reason}.", code="invalid_json")
    hint = "; write it like 2030-01-31T12:00:00Z" if _MOMENT.match(reason) else ""
    return BadRequest(f"Invalid value for '{path}': {reason}{hint}.", param=path, code=_code(reason))


def _code(reason: str) -> str:
    return "invalid_type" if reason.startswith("Expected") and "got" in reason else "invalid_value"
