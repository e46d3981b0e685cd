"""What OpenAPI says of the `/v1` endpoints, out of the very types that decode their requests."""

from collections.abc import Mapping
from typing import Any

import msgspec

from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS, Door
from apps.gateway.openai.answers import ChatCompletion, Completion, EmbeddingList
from citadel.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    CitadelError,
    LimitExceeded,
    LoopDetected,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
)

Schema = dict[str, Any]
Responses = dict[int, Schema]

ANSWERS: Mapping[Door, type[msgspec.Struct]] = {
    CHAT: ChatCompletion,
    COMPLETIONS: Completion,
    EMBEDDINGS: EmbeddingList,
}
REFUSALS = (
    BadRequest,
    NotFound,
    TooSlow,
    TooLarge,
    LimitExceeded,
    BackendFailed,
    Unavailable,
    BackendTimeout,
    LoopDetected,
)
"""What a request for inference may end with, besides what any request may."""
HEADERS = {
    "x-citadel-server": "The server that answered.",
    "x-citadel-attempts": "How many servers were tried.",
    "x-citadel-cache": "`hit`, `miss`, `coalesced` or `bypass`.",
    "openai-processing-ms": "Milliseconds until the answer began.",
}


def described(door: Door) -> Schema:
    """A door's request body and answers."""
    body = {"required": True, "content": {"application/json": {"schema": schema(door.schema)}}}
    content: Schema = {"application/json": {"schema": schema(ANSWERS[door])}}
    text = "The answer."
    if door is not EMBEDDINGS:
        text = "The answer; with `stream` its chunks, an event for each, and `data: [DONE]` at the end."
        content["text/event-stream"] = {}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()}
    responses: Responses = {200: {"description": text, "content": content, "headers": headers}, **refusals(*REFUSALS)}
    return {"requestBody": body, "responses": responses}


def answers(answer: type[msgspec.Struct], *refused: type[CitadelError]) -> Schema:
    """The answers of an endpoint that takes no body."""
    responses: Responses = {200: {"content": {"application/json": {"schema": schema(answer)}}}, **refusals(*refused)}
    return {"responses": responses}


def refusals(*kinds: type[CitadelError]) -> Responses:
    """Error answers, by status: the shell describes each class of the error tree once."""
    return {kind.status: {"$ref": f"#/components/responses/{kind.__name__}"} for kind in kinds}


def schema(kind: type[msgspec.Struct]) -> Schema:
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
        return _inlined(components[value["$ref"].rpartition("/")[2]], components)
    return {name: _inlined(item, components) for name, item in value.items()}
