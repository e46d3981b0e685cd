"""What a request needs of the server that answers it. Pure."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from apps.gateway.inference.doors import Door, Request
from apps.gateway.openai.messages import Message
from apps.gateway.openai.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from apps.orchestration.fleet import Model
from apps.orchestration.routing.plan import ANYTHING, Needs

CHARACTERS_A_TOKEN = 6
"""At most: what is longer than a context by this measure does not fit into it."""


def needs_of(door: Door, request: Request, model: Model, headers: Mapping[bytes, bytes], strategy: str) -> Needs:
    """What decides between the servers of a model; nothing where there is but one, unless a request may wait there
    until there are others.
    """
    if len(model.servers) == 1 and not model.servers[0].max_concurrent:
        return ANYTHING
    streams = not isinstance(request, EmbeddingRequest) and bool(request.stream)
    affinity = _affinity(request, model, headers) if strategy == "affinity" else None
    if not isinstance(request, ChatRequest):
        return Needs(tokens=_tokens(request, model), affinity=affinity, streams=streams, endpoint=door.name)
    seen = _look_through(request.messages)
    capabilities = _capabilities(request, seen.images)
    return Needs(capabilities, seen.tokens, affinity, streams, seen.assistant, door.name)


def _tokens(request: CompletionRequest | EmbeddingRequest, model: Model) -> int:
    """At least, of context. Who embeds what fits nowhere needs the longest that there is: many servers cut a text, as
    they are asked to or always do, and what fits nowhere may be known.
    """
    if isinstance(request, CompletionRequest):
        return _longest(request.prompt)
    tokens = _longest(request.input)
    if not model.context_length or tokens <= model.context_length:
        return tokens
    contexts = [model.context_on(server.server_id) for server in model.servers if server.state == "active"]
    return min(tokens, max(contexts)) if contexts and all(contexts) else tokens


def _longest(given: str | list[Any]) -> int:
    """Tokens of a text, at least, or of the longest of several: each has the context to itself. Token ids are one."""
    if isinstance(given, str):
        return len(given) // CHARACTERS_A_TOKEN
    if isinstance(given[0], int):
        return len(given)
    longest = max(map(len, given))
    return longest // CHARACTERS_A_TOKEN if isinstance(given[0], str) else longest


class _Seen(NamedTuple):
    """What there is in a conversation: at least so many tokens of text, whether images, whether answers before."""

    tokens: int
    images: bool
    assistant: bool


def _look_through(messages: list[Message]) -> _Seen:
    """In one go: the whole of a long conversation comes with each of its requests."""
    characters, images, assistant = 0, False, False
    for message in messages:
        content = message.content
        if isinstance(content, str):
            characters += len(content)
        else:
            characters += sum([len(text) for text in _texts(message)])
            images = images or _shows_images(message)
        assistant = assistant or message.role == "assistant"
    return _Seen(characters // CHARACTERS_A_TOKEN, images, assistant)


def _capabilities(request: ChatRequest, images: bool) -> frozenset[str]:
    needed = []
    if request.tools:
        needed.append("tools")
    if request.response_format is not None and request.response_format.type == "json_schema":
        needed.append("json_schema")
    if images:
        needed.append("vision")
    return frozenset(needed)


def _shows_images(message: Message) -> bool:
    return isinstance(message.content, list) and any(part.type == "image_url" for part in message.content)


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    parts = message.content if isinstance(message.content, list) else []
    return [part.text for part in parts if isinstance(part.text, str)]


def _affinity(request: Request, model: Model, headers: Mapping[bytes, bytes]) -> int | None:
    """What a conversation's requests have in common: the session that the client names, or else how it begins."""
    beginning = hashlib.blake2b(model.name.encode(), digest_size=8)
    if session := headers.get(b"x-citadel-session"):
        beginning.update(b"\0" + session)
        return int.from_bytes(beginning.digest(), "big")
    if not isinstance(request, ChatRequest):
        return None
    for message in request.messages:
        beginning.update(message.role.encode())
        for text in _texts(message):
            beginning.update(text.encode("utf-8", "surrogatepass"))
        if message.role == "user":  # what comes after it is new in each turn
            break
    return int.from_bytes(beginning.digest(), "big")
