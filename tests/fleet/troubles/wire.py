"""Trouble on the wire: packets, lengths, codings, sizes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ..answer import Answer
from ..request import Request
from .trouble import Trouble, trouble

Size = Annotated[int, Meta(ge=0, le=200_000_000)]


@trouble("split")
class Split(Trouble, frozen=True):
    """The body in packets of ``size`` bytes (legal), ``gap_ms`` between them: a dribble when that is long."""

    size: Annotated[int, Meta(ge=1)] = 1
    gap_ms: float = 0.0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set the size of packets."""
        answer.wire.split_bytes, answer.wire.gap = self.size, self.gap_ms / 1000


@trouble("split_characters")
class SplitCharacters(Trouble, frozen=True):
    """Packets end inside of characters of several bytes (legal), with a pause so that they arrive one by one."""

    gap_ms: float = 5.0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Cut in characters."""
        answer.wire.split_characters, answer.wire.gap = True, self.gap_ms / 1000


@trouble("frames")
class Frames(Trouble, frozen=True):
    """HTTP chunks of ``size`` body bytes (legal) instead of one for each event."""

    size: Annotated[int, Meta(ge=1)] = 1

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set the size of frames."""
        answer.wire.frame_bytes = self.size


@trouble("bad_frame")
class BadFrame(Trouble, frozen=True):
    """The event number ``at_event`` (from 0) has a chunk-size line that is no number."""

    at_event: Annotated[int, Meta(ge=0)] = 2

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Spoil that frame."""
        answer.wire.framing, answer.wire.bad_frame_at = "chunked", self.at_event


@trouble("framing")
class Framing(Trouble, frozen=True):
    """How the end of the body is told (legal): ``length``, ``chunked``, or ``close``, by the end of the connection."""

    how: Literal["length", "chunked", "close"] = "close"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set the framing."""
        answer.wire.framing = self.how


@trouble("wrong_length")
class WrongLength(Trouble, frozen=True):
    """A content-length that is ``off`` by so many bytes. Positive: the body is cut short; negative: it overflows."""

    off: int = 10

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Tell a wrong length."""
        answer.wire.framing, answer.wire.length_off = "length", self.off


@trouble("content_type")
class ContentType(Trouble, frozen=True):
    """Another content type than the body has; empty leaves the header out."""

    value: str = "application/json"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Change the header."""
        answer.headers.pop("content-type", None)
        if self.value:
            answer.headers["content-type"] = self.value


@trouble("gzip")
class Gzip(Trouble, frozen=True):
    """A body coded with gzip, asked for or not. ``body=false`` or ``header=false``: one without the other, a lie."""

    body: bool = True
    header: bool = True

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Compress, say so, or only one of the two."""
        answer.wire.gzip = self.body
        if self.header:
            answer.headers["content-encoding"] = "gzip"


@trouble("huge_headers")
class HugeHeaders(Trouble, frozen=True):
    """``size`` bytes of headers more, in lines of at most ``line`` bytes."""

    size: Annotated[int, Meta(ge=1, le=16_000_000)] = 100_000
    line: Annotated[int, Meta(ge=16)] = 1000

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Add the headers."""
        for number, start in enumerate(range(0, self.size, self.line)):
            name = f"x-fill-{number}"
            answer.headers[name] = "x" * max(1, min(self.line, self.size - start) - len(name) - 4)


@trouble("huge_body")
class HugeBody(Trouble, frozen=True):
    """A plain answer with ``size`` bytes more: valid JSON with a long field ``padding``. Streams see ``huge_line``."""

    size: Size = 50_000_000

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Add the padding."""
        if answer.events is None and answer.body.endswith(b"}"):
            answer.body = answer.body[:-1] + b',"padding":"' + b"x" * self.size + b'"}'
