"""Counts tokens: as the server says, else as well as can be told from outside."""

import time
from typing import Any

import msgspec

from apps.audit.record import MOST
from apps.gateway.inference.doors import CHAT, Request
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.streams.sse import UNREADABLE, Parser, Usage, framed
from apps.gateway.limits.budgets import Need
from apps.gateway.openai.messages import MEDIA
from apps.gateway.openai.schemas import ChatRequest, EmbeddingRequest

BYTES_PER_TOKEN = 4
"""Of English text, for want of the model's tokenizer."""
BYTES_RESERVED_BY = 2
"""So many bytes of a prompt reserve a token: half of what English has for one. No tokenizer makes more tokens than it
has bytes, so that a prompt of text uses at most twice what it has reserved, and one of token ids no more than that.
"""
MEDIUM = 2_000
"""Tokens that an image, a sound or the like is taken to have: those of a photograph for most models. Its bytes tell
nothing about that.
"""


class _Counted(msgspec.Struct):
    usage: Usage | None = None


class _Choice(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()


class _Said(msgspec.Struct):
    choices: list[_Choice] = []


_counted = msgspec.json.Decoder(_Counted)
_said = msgspec.json.Decoder(_Said)


def usage_of(exchange: Exchange, answer: bytes) -> Usage:
    """The usage of a whole answer, estimated where it tells none: else it would cost nothing."""
    try:
        if told := _counted.decode(answer).usage:
            return told
        said = _said.decode(answer).choices
    except UNREADABLE:
        return estimated(exchange, len(answer) // BYTES_PER_TOKEN)
    size = sum(len(bytes(choice.message)) + len(bytes(choice.text)) for choice in said)
    return estimated(exchange, size // BYTES_PER_TOKEN)


def estimated(exchange: Exchange, tokens: int) -> Usage:
    """Usage of an answer of about so many tokens, of which a chunk is one, whose server doesn't count."""
    return Usage(_prompt(exchange.request, exchange.body, BYTES_PER_TOKEN), tokens)


def most_needed(request: Request, body: bytes, usual_answer: int, seconds: float) -> Need:
    """What a request may need: tokens of its prompt and its answers, a `usual_answer` each where it doesn't say, and as
    many `seconds` of a server's time as others.
    """
    prompt = _prompt(request, body, BYTES_RESERVED_BY)
    if isinstance(request, EmbeddingRequest):
        return Need(prompt, 0, seconds)
    return Need(prompt, request.longest_answer(usual_answer) * request.answers, seconds)


def _prompt(request: Request, body: bytes, bytes_per_token: int) -> int:
    """Tokens of a prompt whose text has so many bytes for each."""
    size, media = len(body), 0
    for message in request.messages if isinstance(request, ChatRequest) else ():
        if isinstance(message.content, list):
            media += sum([part.type in MEDIA for part in message.content])
            size -= sum([len(part.data) for part in message.content])
    return max(1, size // bytes_per_token + media * MEDIUM)


def used(exchange: Exchange) -> Need:
    """What a request has used, as it ends: the tokens that it has on record, and the time of all servers it was at."""
    record = exchange.record
    return Need(_believable(record.prompt_tokens), _believable(record.completion_tokens), exchange.seconds)


def _believable(tokens: int) -> int:
    """As a server told it, within what the record holds."""
    return max(0, min(tokens, MOST))


def untold_usage(exchange: Exchange, parser: Parser) -> bytes:
    """The event that tells the usage of a stream whose own events don't."""
    if parser.kept_back:
        return framed(parser.kept_back)
    return b"" if parser.usage else estimate(exchange, parser.content_chunks)


def estimate(exchange: Exchange, tokens: int) -> bytes:
    """The event that tells the usage of an answer of about so many tokens whose server told none."""
    kind = "chat.completion.chunk" if exchange.door is CHAT else "text_completion"
    usage = estimated(exchange, tokens)
    return _usage_event(usage, kind, exchange.model.name, exchange.record.request_id)


def _usage_event(usage: Usage, kind: str, model: str, request_id: str) -> bytes:
    """The last chunk of a stream whose client asked for usage and whose server sent none; it says that it is ours.

    `kind` is the chunks' `object`.
    """
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    chunk: dict[str, Any] = {
        "id": request_id,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "citadel": {"usage": "estimated"},
    }
    return framed(msgspec.json.encode(chunk))
