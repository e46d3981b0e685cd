"""An answer before it is on the wire: what a backend says, and every knob a trouble can turn.

A backend builds an ``Answer``; troubles change it; ``script.py`` makes it into steps; ``connection.py`` performs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import msgspec


class Part(Enum):
    """What an event of a stream is for."""

    ROLE = "role"  # says who speaks, holds no content
    CONTENT = "content"
    FINISH = "finish"
    USAGE = "usage"
    DONE = "done"
    OTHER = "other"
    RAW = "raw"  # goes out as it is, without ``data:``


@dataclass(slots=True)
class Event:
    """One event of a stream: a JSON value, or bytes that go out undisturbed."""

    payload: dict[str, Any] | bytes
    part: Part = Part.CONTENT


@dataclass(slots=True)
class Lines:
    """How events become lines (WHATWG HTML, section 9.2 "Server-sent events"), or one JSON value a line for Ollama."""

    end: bytes = b"\n"
    prefix: bytes = b"data: "
    indent: bool = False  # a JSON value over several ``data`` lines
    ndjson: bool = False
    before: bytes = b""  # stands before each event, comments for instance; written with ``\n``
    start: bytes = b""  # stands before the whole stream

    def encode(self, event: Event) -> bytes:
        """The bytes of one event with its line ends."""
        if event.part is Part.RAW and isinstance(event.payload, bytes):
            return event.payload
        data = event.payload if isinstance(event.payload, bytes) else msgspec.json.encode(event.payload)
        if self.ndjson:
            return data + b"\n"
        if self.indent and not isinstance(event.payload, bytes):
            data = b"\n".join(self.prefix + line for line in msgspec.json.format(data, indent=1).split(b"\n"))
        else:
            data = self.prefix + data
        text = self.before + data + b"\n\n"
        return text if self.end == b"\n" else text.replace(b"\n", self.end)


class Place(Enum):
    """The units in which a point of an answer is said."""

    REQUEST = "request"  # the request is read, nothing is sent
    HEAD = "head"  # after k bytes of the status line and headers
    HEADERS = "headers"  # all of the head is sent
    BYTE = "byte"  # after k bytes behind the head, as they are on the wire
    CHUNK = "chunk"  # after k content chunks; 2.5 is in the middle of the third
    END = "end"  # everything is sent but what ends the framing


@dataclass(frozen=True, slots=True)
class Point:
    """A point of an answer: ``request``, ``headers``, ``end``, ``head:5``, ``byte:17``, ``chunk:3``, ``chunk:2.5``.

    The event that only says who speaks is no chunk, so ``chunk:0`` is after it and before the first content.
    A whole (not streamed) body is one chunk.
    """

    place: Place
    number: float = 0

    @classmethod
    def parse(cls, text: str) -> Point:
        """Read the written form; raises ValueError that says what is allowed."""
        match = re.fullmatch(r"(request|headers|end)|(head|byte):(\d+)|(chunk):(\d+(?:\.\d+)?)", text)
        if match is None:
            raise ValueError(
                f"{text!r} is no point of an answer: write request, headers, end, head:K, byte:K, chunk:K or chunk:K.5"
            )
        name, _, number = text.partition(":")
        return cls(Place(name), float(number or 0))


HowToCut = Literal["fin", "rst", "exit", "stop"]


@dataclass(frozen=True, slots=True)
class Send:
    """Put bytes on the wire; ``chunks`` content chunks and ``events`` events are complete once they are out."""

    data: bytes
    chunks: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so many seconds; ``math.inf`` waits until the client leaves."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection here: ``fin`` closes, ``rst`` resets; ``exit`` kills the whole process, ``stop`` stops it."""

    how: HowToCut
    early: bool = True  # before the answer was whole


Step = Send | Wait | Cut


@dataclass(frozen=True, slots=True)
class Cue:
    """A step that happens when the answer reaches a point."""

    at: Point
    step: Wait | Cut


@dataclass(slots=True)
class Wire:
    """How the body travels, and the lies told about it."""

    framing: Literal["auto", "length", "chunked", "close"] = "auto"
    length_off: int = 0  # added to the true content-length
    frame_bytes: int = 0  # so many body bytes in one HTTP chunk; 0 is one frame an event
    bad_frame_at: int = -1  # this event's chunk-size line is no hexadecimal number
    split_bytes: int = 0  # so many bytes in one packet; 0 is one packet a step
    split_characters: bool = False  # cut each packet inside its characters
    gap: float = 0.0  # seconds between the packets of a split
    together: int = 1  # events in one packet
    gzip: bool = False


@dataclass(slots=True)
class Answer:
    """Status, headers and a body, or the events of a stream."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    events: Iterable[Event] | None = None
    lines: Lines = field(default_factory=Lines)
    wire: Wire = field(default_factory=Wire)
    cues: list[Cue] = field(default_factory=list)
    pace: float = 0.0  # seconds between the events of a stream

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        """A whole answer with a JSON body."""
        return cls(status, {"content-type": "application/json", **(headers or {})}, msgspec.json.encode(value))

    @classmethod
    def of_text(cls, text: str, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> Answer:
        """A whole answer of text."""
        return cls(status, {"content-type": content_type}, text.encode())

    def replace_by(self, other: Answer) -> None:
        """Say what ``other`` says, but keep the cues and the manner of travel asked for so far."""
        self.status, self.headers, self.body = other.status, other.headers, other.body
        self.events, self.lines = other.events, other.lines
