"""What the upstream answers: OpenAI's shapes as bytes, rendered once.

A question carries its number as ``#`` and nine digits, and every answer repeats it in its ``id``. So the load generator
can tell an answer to its own question from one that belongs to somebody else.
"""

import base64
import json
import random
import struct
from functools import cache

CHAT_MODEL = "bench-chat"
PLACED_MODEL = "bench-placed"
"""The same as the chat's, on several servers with a limit each."""
EMBEDDING_MODEL = "bench-embedding"
DIMENSIONS = 384
NUMBER_DIGITS = 9
NO_NUMBER = b"0" * NUMBER_DIGITS

_CREATED = 1_760_000_000
_CONTENT = (
    "The portal stands in front of the servers, counts what passes and keeps the order of things: "
    "each question goes to one machine, and its words come back unchanged."
)
_SLOT = "@" * NUMBER_DIGITS  # where an answer takes its number


def question_number(body: bytes) -> bytes:
    """Return the nine digits after the first ``#`` in ``body``, or nine zeros."""
    start = body.find(b"#") + 1
    digits = body[start : start + NUMBER_DIGITS]
    return digits if start and len(digits) == NUMBER_DIGITS and digits.isdigit() else NO_NUMBER


def _split(document: dict[str, object]) -> tuple[bytes, bytes]:
    """Render ``document`` and cut it where its number goes."""
    before, after = json.dumps(document, separators=(",", ":")).split(_SLOT)
    return before.encode(), after.encode()


def _http(content_type: str, body_length: int, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {body_length}\r\n\r\n".encode()


def document(status: str, content: object) -> bytes:
    """Return a whole HTTP answer with ``status`` (such as ``200 OK``) and ``content`` as JSON."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return _http("application/json", len(body), status) + body


_COMPLETION = _split(
    {
        "id": f"chatcmpl-{_SLOT}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": CHAT_MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": _CONTENT}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 24, "completion_tokens": 31, "total_tokens": 55},
    }
)
_COMPLETION_BEFORE = _http("application/json", sum(map(len, _COMPLETION)) + NUMBER_DIGITS) + _COMPLETION[0]
_COMPLETION_AFTER = _COMPLETION[1]


def completion(number: bytes) -> bytes:
    """Return the whole HTTP answer to a plain chat request: about 400 bytes of JSON."""
    return _COMPLETION_BEFORE + number + _COMPLETION_AFTER


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _event(**fields: object) -> tuple[bytes, bytes]:
    """Render one event as one chunk of HTTP's chunked coding, cut where its number goes."""
    head = {"id": f"chatcmpl-{_SLOT}", "object": "chat.completion.chunk", "created": _CREATED, "model": CHAT_MODEL}
    before, after = _split(head | fields)
    length = len(b"data: ") + len(before) + NUMBER_DIGITS + len(after) + len(b"\n\n")
    return f"{length:x}\r\ndata: ".encode() + before, after + b"\n\n\r\n"


def _choice(delta: dict[str, str], finish_reason: str | None) -> list[dict[str, object]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


@cache
def stream(chunks: int, include_usage: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return the events of a stream, each cut where its number goes.

    The role, ``chunks`` events with content, the finish reason, and the usage with empty choices if it was asked for;
    ``STREAM_END`` comes after them.
    """
    content = [_event(choices=_choice({"content": f" word{i % 100:02d}"}, None)) for i in range(chunks)]
    events = [
        _event(choices=_choice({"role": "assistant", "content": ""}, None)),
        *content,
        _event(choices=_choice({}, "stop")),
    ]
    if include_usage:
        usage = {"prompt_tokens": 24, "completion_tokens": chunks, "total_tokens": 24 + chunks}
        events.append(_event(choices=[], usage=usage))
    return tuple(events)


@cache
def embeddings(count: int, as_base64: bool) -> bytes:
    """Return the whole HTTP answer with ``count`` vectors, as floats or as base64 of little-endian 32-bit floats."""
    floats = _vector()
    vector: object = floats
    if as_base64:
        vector = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *floats)).decode()
    return document(
        "200 OK",
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(count)],
            "model": EMBEDDING_MODEL,
            "usage": {"prompt_tokens": 12 * count, "total_tokens": 12 * count},
        },
    )


@cache
def _vector() -> list[float]:
    """One vector of the length 1, as an embedding model gives it; always the same."""
    dice = random.Random(DIMENSIONS)
    raw = [dice.gauss(0, 1) for _ in range(DIMENSIONS)]
    norm = sum(value * value for value in raw) ** 0.5
    return [round(value / norm, 8) for value in raw]


MODELS = document(
    "200 OK",
    {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "bench"}
            for name in (CHAT_MODEL, EMBEDDING_MODEL)
        ],
    },
)
HEALTHY = document("200 OK", {"status": "ok"})
NOT_FOUND = document(
    "404 Not Found",
    {"error": {"message": "No such path.", "type": "invalid_request_error", "param": None, "code": "not_found"}},
)
NOT_JSON = document(
    "400 Bad Request",
    {"error": {"message": "The body is not JSON.", "type": "invalid_request_error", "param": None, "code": None}},
)
NO_LENGTH = document(
    "411 Length Required",
    {"error": {"message": "Send content-length.", "type": "invalid_request_error", "param": None, "code": None}},
)
