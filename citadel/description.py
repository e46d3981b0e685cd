"""What an operation tells OpenAPI of itself, out of the very types that its view decodes and encodes."""

from collections.abc import Mapping
from typing import Any

import msgspec

from citadel.errors import CitadelError

Schema = dict[str, Any]
Responses = dict[int, Schema]


def answers(answer: Any, *refused: type[CitadelError], body: Any = None, required: bool = True) -> Schema:
    """The answers of an endpoint, and its body where it takes one."""
    responses: Responses = {200: {"content": {"application/json": {"schema": schema(answer)}}}, **refusals(*refused)}
    if body is None:
        return {"responses": responses}
    content = {"application/json": {"schema": schema(body)}}
    return {"requestBody": {"required": required, "content": content}, "responses": responses}


def refusals(*kinds: type[CitadelError]) -> Responses:
    """Error answers, by status: the shell describes each class of the error tree once."""
    return {kind.status: {"$ref": f"#/components/responses/{kind.__name__}"} for kind in kinds}


def schema(kind: Any) -> Schema:
    """A type as JSON Schema without references: ninja keeps the components of its own types alone."""
    (root,), components = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    inlined: Schema = _inlined(root, components)
    return inlined


def _inlined(value: Any, components: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_inlined(item, components) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        more = {name: item for name, item in value.items() if name != "$ref"}
        return _inlined({**components[value["$ref"].rpartition("/")[2]], **more}, components)
    # What tells the types of a union apart points to components; each type has its tag as the one value of a field too.
    return {name: _inlined(item, components) for name, item in value.items() if name != "discriminator"}
