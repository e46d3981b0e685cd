"""What a data-plane view gives back: raw headers and bytes, or a stream of them, with nothing in between.

Django's own `HttpResponse` parses, folds and encodes headers that we already have as bytes; under load that is a
twentieth of a request. Ninja hands any `HttpResponseBase` through, so these are that and no more.
"""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec
from django.http.response import HttpResponseBase

from citadel.errors import CitadelError

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


class Answer(HttpResponseBase):
    """A whole answer: a status, headers as ASGI wants them, a body."""

    streaming = False
    packed: bytes | None = None
    """The body as gzip has it, where that is kept."""

    def __init__(self, body: bytes, *, status: int = 200, headers: Headers):
        self.status_code = status
        self.raw_headers = headers
        self.content = body
        self.closed = False


def json_answer(told: Any, status: int = 200) -> Answer:
    """What is told as JSON."""
    return Answer(msgspec.json.encode(told), status=status, headers=[JSON])


def length_of(body: bytes) -> tuple[bytes, bytes]:
    """The header that tells it."""
    return (b"content-length", b"%d" % len(body))


class Source(Protocol):
    """Where the pieces of a stream come from."""

    cut: bool
    """Set when the stream ended badly: then the connection is closed after the last piece."""

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The stream, piece by piece, each sent as soon as it is there."""

    def end(self) -> None:
        """Called once when nothing more will be sent, whyever, even if `pieces` was never begun."""


class StreamAnswer(HttpResponseBase):
    """An answer that is sent piece by piece as it comes.

    After `silence` seconds without a piece, and as often as that again, `keep_alive` is sent instead.
    """

    streaming = True

    def __init__(self, source: Source, *, headers: Headers, silence: float, keep_alive: bytes = b": keep-alive\n\n"):
        self.status_code = 200
        self.raw_headers = headers
        self.source = source
        self.keep_alive = keep_alive
        self.silence = silence
        self.closed = False


def error_answer(error: CitadelError, headers: Headers | None = None) -> Answer:
    """The error as an answer in OpenAI's shape; `headers` come before those of its way and its own."""
    told = [JSON, *(headers or ()), *error.way, *error.headers()]
    return Answer(error.body(), status=error.status_code, headers=told)
