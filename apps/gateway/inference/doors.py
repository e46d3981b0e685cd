"""The doors through which a request enters the one pipeline: what each is called and how its body is read."""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from apps.gateway.inference.caching import clearings
from apps.gateway.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, bad_request
from apps.orchestration.fleet import Model
from citadel.errors import BadRequest

Request = ChatRequest | CompletionRequest | EmbeddingRequest
Fields = dict[str, msgspec.Raw]

_fields = msgspec.json.Decoder(Fields)
LARGE = 1 << 16
"""Bytes that others may have to wait for while they are read or written: less than a millisecond."""


class Door:
    """One inference endpoint."""

    def __init__(self, name: str, path: str, schema: type[Request]):
        self.name = name
        self.path = path
        self.schema = schema
        self._decoder = msgspec.json.Decoder(schema)
        self._names = frozenset(schema.__struct_fields__)
        self._longest = max(map(len, self._names))

    def read(self, body: bytes) -> Request:
        """The request, as far as the gateway looks into it; BadRequest names the field that is wrong."""
        request = self._decode(body)
        self._check_names(_fields.decode(body))
        return request

    async def read_large(self, body: bytes) -> Request:
        """The same of a large body, between whose parts others may run."""
        request = self._decode(body)
        await asyncio.sleep(0)
        self._check_names(_fields.decode(body))
        await asyncio.sleep(0)
        return request

    def _decode(self, body: bytes) -> Request:
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise bad_request(error, self.schema) from None
        except (RecursionError, UnicodeDecodeError):
            raise BadRequest("The body is not valid JSON.", code="invalid_json") from None

    def _check_names(self, names: Iterable[str]) -> None:
        """BadRequest for a field that is one of the schema's in all but case: some servers would take it for that,
        and for another value than the gateway has checked and decided by.

        Go's decoder does (encoding/json, Unmarshal: "accepting a case-insensitive match"), and so does Ollama.
        """
        for name in names:
            if name not in self._names and len(name) <= self._longest and name.casefold() in self._names:
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


def cache_policy(request: Request, headers: Mapping[bytes, bytes], model: Model) -> CachePolicy:
    """Repeatable requests are cached, and those that ask for it or whose class does; `no-store`, `no-cache` and
    `bypass` are honoured.
    """
    asked = headers.get(b"x-citadel-cache", b"").lower()
    control = headers.get(b"cache-control", b"").lower()
    if asked == b"bypass" or b"no-store" in control:
        return NO_CACHE
    repeatable = isinstance(request, EmbeddingRequest) or request.temperature == 0 or request.seed is not None
    if repeatable or asked in (b"use", b"cache") or (model.model_class and model.model_class.cache_chat):
        return REFRESH if b"no-cache" in control else CACHE
    return NO_CACHE


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


async def fingerprint(team: str, model: str, door: Door, body: bytes, *, without: str = "") -> bytes:
    """A digest of the canonical request: keys sorted, model resolved, the field `without` left out, and whether it
    streams and tells its usage, which either form of an answer can; never the same for two teams, nor before and
    after a clearing. Others may run between the parts of a large body.
    """
    fields = msgspec.json.decode(body)
    if len(body) > LARGE:
        await asyncio.sleep(0)
    fields.pop("stream", None)
    fields.pop(without, None)
    options = fields.pop("stream_options", None) or {}
    if shaping := {name: value for name, value in options.items() if name != "include_usage"}:
        fields["stream_options"] = shaping
    fields["model"] = model
    canonical = msgspec.json.encode([team, door.name, fields, *clearings.since(team, model)], order="deterministic")
    if len(canonical) > LARGE:
        await asyncio.sleep(0)
    return hashlib.sha256(canonical).digest()
