"""What the API says of itself: ninja's description of each operation, and what all of them have in common."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
from ninja import NinjaAPI

from citadel.errors import CitadelError, Forbidden, LimitExceeded, Unauthenticated, Unavailable

Json = dict[str, Any]

CREDENTIALS: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."},
}
CLIENT: Json = {
    "basic": {"type": "http", "scheme": "basic", "description": "An API key as a client: its id, and the key itself."}
}
_TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR: Json = {
    "type": "object",
    "description": "An error in OpenAI's shape.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to do, for people."},
                "type": {"type": "string"},
                "param": {**_TEXT_OR_NULL, "description": "The field that is wrong."},
                "code": {**_TEXT_OR_NULL, "description": "What is wrong, for programs."},
            },
        }
    },
}
REQUEST_ID = {"description": "The client's own where it is sane, else a new one.", "schema": {"type": "string"}}
RETRY_AFTER = {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}


def describe(api: NinjaAPI) -> bytes:
    """The whole document, as JSON."""
    document = dict(api.get_openapi_schema(path_prefix=""))
    components: Json = {
        **document["components"],
        "securitySchemes": {**CREDENTIALS, **CLIENT},
        "schemas": {"Error": ERROR},
        "responses": {kind.__name__: _refusal(kind) for kind in _tree(CitadelError)},
    }
    paths = {
        path: {method: _completed(operation) for method, operation in operations.items()}
        for path, operations in document["paths"].items()
    }
    security: list[Json] = [{name: []} for name in CREDENTIALS]
    return msgspec.json.encode({**document, "paths": paths, "components": components, "security": security})


def _tree(kind: type[CitadelError]) -> Iterator[type[CitadelError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == CitadelError.__module__:
            yield from _tree(below)


def _refusal(kind: type[CitadelError]) -> Json:
    headers: Json = {"x-request-id": REQUEST_ID}
    if issubclass(kind, (LimitExceeded, Unavailable)):
        headers["retry-after"] = RETRY_AFTER
    return {
        "description": inspect.getdoc(kind),
        "headers": headers,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }


def _completed(operation: Json) -> Json:
    """With the answers that every operation may give, and the header that all have."""
    for_all = (CitadelError,) if operation.get("security") == [] else (CitadelError, Unauthenticated, Forbidden)
    responses: dict[int, Json] = {
        **{kind.status: {"$ref": f"#/components/responses/{kind.__name__}"} for kind in for_all},
        **operation["responses"],
    }
    return {**operation, "responses": {str(status): _with_id(responses[status]) for status in sorted(responses)}}


def _with_id(response: Json) -> Json:
    if "$ref" in response:
        return response
    return {**response, "headers": {**response.get("headers", {}), "x-request-id": REQUEST_ID}}
