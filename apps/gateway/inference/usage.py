"""Counts tokens: as the server says, else as well as can be told from outside."""

import time
from typing import Any

import msgspec

from apps.gateway.inference.sse import Usage

_BYTES_PER_TOKEN = 4
"""Of English text, for want of the model's tokenizer."""


class _Counted(msgspec.Struct):
    usage: Usage | None = None


_counted = msgspec.json.Decoder(_Counted)


def usage_of(answer: bytes) -> Usage:
    """The usage of a whole answer; zeros where it has none."""
    try:
        return _counted.decode(answer).usage or Usage()
    except msgspec.DecodeError:
        return Usage()


def estimated(request: bytes, chunks: int) -> Usage:
    """Usage of a stream whose server doesn't count: a token a chunk, and the request by its length."""
    return Usage(len(request) // _BYTES_PER_TOKEN, chunks)


def usage_event(usage: Usage, kind: str, model: str, request_id: str) -> bytes:
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
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
