"""What OpenAPI says of the `/v1` endpoints, out of the very types that decode their requests."""

from collections.abc import Mapping

import msgspec

from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS, Door
from apps.gateway.openai.answers import ChatCompletion, Completion, EmbeddingList
from citadel.description import Responses, Schema, refusals, schema
from citadel.errors import (
    BackendFailed,
    BackendTimeout,
    BadRequest,
    LimitExceeded,
    LoopDetected,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
)

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
