"""Citadel's description of its API, narrowed to what is there, so that fuzzers ask for that."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import schemathesis

from citadel.api import openapi_document

Values = Mapping[str, Sequence[Any]]
"""By the names of parameters, or of fields of bodies."""


def narrowed(parameters: Values, fields: Values) -> schemathesis.BaseSchema:
    """The description, in which these parameters and fields have these values alone: whatever else fuzzers think of
    comes among the data that break it.
    """
    document = json.loads(openapi_document())
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                _narrow(parameter, "schema", parameters.get(parameter["name"]))
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                for name in properties:
                    _narrow(properties, name, fields.get(name))
    found = schemathesis.openapi.from_dict(document)
    found.config.generation.update(with_security_parameters=False)
    return found


def _narrow(place: dict[str, Any], name: str, values: Sequence[Any] | None) -> None:
    """Not by `anyOf` beside what is allowed already: what allows all is then all that generators see."""
    if values:
        place[name] = {"enum": list(values)}
