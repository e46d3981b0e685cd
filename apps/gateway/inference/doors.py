"""The doors through which a request enters the one pipeline: what each is called and how its body is read."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from apps.gateway.inference import clearings
from apps.gateway.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, bad_request
from citadel.errors import BadRequest

Request = ChatRequest | CompletionRequest | EmbeddingRequest
Fields = dict[str, msgspec.Raw]

_fields = msgspec.json.Decoder(Fields)
_DECIDING = frozenset({"model", "stream"})
"""Fields by which the gateway decides."""
_LONGEST = max(map(len, _DECIDING))
_NOT_CONTENT = ("stream", "stream_options")
"""Fields that say how an answer travels, not what it is."""


class Door:
    """One inference endpoint."""

    def __init__(self, name: str, path: str, schema: type[Request]):
        self.name = name
        self.path = path
        self.schema = schema
        self._decoder = msgspec.json.Decoder(schema)

    def read(self, body: bytes) -> Request:
        """The request, as far as the gateway looks into it; BadRequest names the field that is wrong."""
        try:
            request = self._decoder.decode(body)
            check_names(_fields.decode(body))
            return request
        except msgspec.DecodeError as error:
            raise bad_request(error, self.schema) from None
        except (RecursionError, UnicodeDecodeError):
            raise BadRequest("The body is not valid JSON.", code="invalid_json") from None


def check_names(names: Iterable[str]) -> None:
    """BadRequest for a field that is `model` or `stream` in all but case: some servers would take it for that.

    Go's decoder does (encoding/json, Unmarshal: "accepting a case-insensitive match"), and so does Ollama.
    """
    for name in names:
        if name not in _DECIDING and len(name) <= _LONGEST and name.casefold() in _DECIDING:
            message = f"Unknown field '{name}': did you mean '{name.casefold()}'?"
            raise BadRequest(message, param=name, code="unknown_parameter")


CHAT = Door("chat", "/v1/chat/completions", ChatRequest)
COMPLETIONS = Door("completions", "/v1/completions", CompletionRequest)
EMBEDDINGS = Door("embeddings", "/v1/embeddings", EmbeddingRequest)


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Whether this request may be answered from the cache, and its answer kept there."""

    read: bool
    write: bool


NO_CACHE = CachePolicy(read=False, write=False)
REFRESH = CachePolicy(read=False, write=True)
CACHE = CachePolicy(read=True, write=True)


def cache_policy(request: Request, headers: Mapping[bytes, bytes]) -> CachePolicy:
    """Repeatable requests are cached, and those that ask for it; `no-store`, `no-cache` and `bypass` are honoured."""
    asked = headers.get(b"x-citadel-cache", b"").lower()
    control = headers.get(b"cache-control", b"").lower()
    if asked == b"bypass" or b"no-store" in control:
        return NO_CACHE
    repeatable = isinstance(request, EmbeddingRequest) or request.temperature == 0 or request.seed is not None
    if not repeatable and asked not in (b"use", b"cache"):
        return NO_CACHE
    return REFRESH if b"no-cache" in control else CACHE


def body_for(body: bytes, request: Request, model: str) -> bytes:
    """The body as the server gets it: the client's own bytes, unless the model has another name there or a stream
    must be asked to tell its usage.
    """
    stream = not isinstance(request, EmbeddingRequest) and request.stream
    if model == request.model and not stream:
        return body
    fields = _fields.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if stream:
        options = msgspec.json.decode(fields.get("stream_options", b"{}")) or {}
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(fields)


def with_inputs(body: bytes, model: str, inputs: list[str | list[int]]) -> bytes:
    """An embedding request's body for other inputs."""
    fields = _fields.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    fields["input"] = msgspec.Raw(msgspec.json.encode(inputs))
    return msgspec.json.encode(fields)


def fingerprint(team: str, model: str, door: Door, body: bytes, *, without: str = "") -> bytes:
    """A digest of the canonical request: keys sorted, model resolved, the field `without` left out; never the same
    for two teams, nor before and after a clearing.
    """
    fields = msgspec.json.decode(body)
    for name in (*_NOT_CONTENT, without):
        fields.pop(name, None)
    fields["model"] = model
    canonical = msgspec.json.encode([team, door.name, fields, *clearings.since(team, model)], order="deterministic")
    return hashlib.sha256(canonical).digest()
