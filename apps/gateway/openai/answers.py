"""The answers of OpenAI's API as clients get them: what OpenAPI shows.

Nothing is decoded or made with these types: a server's answer travels as it is, with whatever else it holds.
"""

from typing import Any, Literal

from msgspec import Struct

Object = dict[str, Any]


class Usage(Struct):
    """The tokens that a request has cost."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class AnswerMessage(Struct):
    """What the model says."""

    role: str
    content: str | None = None
    tool_calls: list[Object] | None = None


class ChatChoice(Struct):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    finish_reason: str | None = None
    logprobs: Object | None = None


class ChatCompletion(Struct):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class TextChoice(Struct):
    """One of `n` continuations."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: Object | None = None


class Completion(Struct):
    """The continuation of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Embedding(Struct):
    """The vector of one input: numbers, or base64 of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct):
    """The vectors of all inputs, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage | None = None


class ModelDetails(Struct, rename={"model_class": "class"}):
    """What Citadel knows of a model besides."""

    servers: list[str]
    context_length: int | None = None
    capabilities: list[str] | None = None
    model_class: str | None = None
    alias_of: str | None = None
    through: list[list[str]] | None = None
    """Told to other Citadels alone (docs/fleet.md)."""


class Model(Struct):
    """A model that a request may ask for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    citadel: ModelDetails


class ModelList(Struct):
    """All models that the caller may use."""

    object: Literal["list"]
    data: list[Model]
