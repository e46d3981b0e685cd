"""Citadel's description of its API, narrowed to what is there, so that fuzzers ask for that."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import schemathesis

from citadel.api import openapi_document
from citadel.decoding import NO_NUL

Values = Mapping[str, Sequence[Any]]
"""By the names of parameters, or of fields of bodies."""


def document() -> dict[str, Any]:
    """The description, as it is to be drawn from: text without NUL as text, as its pattern takes minutes."""
    found: dict[str, Any] = json.loads(openapi_document())
    _forget_nul(found)
    return found


def _forget_nul(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("pattern") == NO_NUL:
            del schema["pattern"]
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        _forget_nul(part)


def api_of(document: dict[str, Any]) -> schemathesis.BaseSchema:
    """The tests of a description, without NUL in any text: what that does is tested by itself."""
    found = schemathesis.openapi.from_dict(document)
    found.config.generation.update(with_security_parameters=False, allow_x00=False)
    return found


def narrowed(parameters: Values, fields: Values) -> schemathesis.BaseSchema:
    """The description, in which these parameters and fields have these values alone: whatever else fuzzers think of
    comes among the data that break it.
    """
    found = document()
    for operations in found["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                _narrow(parameter, "schema", parameters.get(parameter["name"]))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                for name in properties:
                    _narrow(properties, name, fields.get(name))
    return api_of(found)


def _narrow(place: dict[str, Any], name: str, values: Sequence[Any] | None) -> None:
    """Not by `anyOf` beside what is allowed already: what allows all is then all that generators see."""
    if values:
        place[name] = {"enum": list(values)}
