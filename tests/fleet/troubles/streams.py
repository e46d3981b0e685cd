"""Trouble in the events of a stream. Plain answers are not touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from ..answer import Answer, Event, Part
from ..backend.errors import Problem, Shape, error_body
from ..backend.routes import shape_of
from ..request import Request
from ..script import without
from .trouble import Trouble, trouble

Chunks = Annotated[int, Meta(ge=0)]


def _insert(events: Iterable[Event], after: int, what: Event, then_end: bool = False) -> Iterator[Event]:
    """``events`` with ``what`` behind ``after`` content chunks (before the first content for 0)."""
    seen = 0
    done = False
    for event in events:
        if not done and seen == after and event.part is not Part.ROLE:
            done = True
            yield what
            if then_end:
                return
        yield event
        seen += event.part is Part.CONTENT


@trouble("no_finish")
class NoFinish(Trouble, frozen=True):
    """The stream has no event with a finish_reason; the usage and ``[DONE]`` come unless ``done=false``."""

    done: bool = True

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Leave the finish out."""
        if answer.events is not None:
            parts = (Part.FINISH,) if self.done else (Part.FINISH, Part.DONE)
            answer.events = without(answer.events, *parts)


@trouble("no_done")
class NoDone(Trouble, frozen=True):
    """The stream ends in good order but without ``[DONE]``."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Leave it out."""
        if answer.events is not None:
            answer.events = without(answer.events, Part.DONE)


@trouble("only_done")
class OnlyDone(Trouble, frozen=True):
    """``[DONE]`` and nothing else."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Leave all else out."""
        if answer.events is not None:
            answer.events = without(answer.events, *(part for part in Part if part is not Part.DONE))


@trouble("error_event")
class ErrorEvent(Trouble, frozen=True):
    """An error as an event after ``after`` content chunks. ``role=false``: the very first event of all.

    ``named=true`` writes ``event: error`` before it. The stream ends there unless ``then=go_on``.
    """

    after: Chunks = 0
    problem: Problem = "crash"
    shape: Shape | None = None
    role: bool = True
    named: bool = False
    then: Literal["end", "done", "go_on"] = "end"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the error in."""
        if answer.events is None:
            return
        body = error_body(self.shape or shape_of(backend, request.path), 500, self.problem)
        error = Event(body if isinstance(body, dict) else {"error": body}, Part.OTHER)
        if self.named:
            error = Event(b"event: error\n" + answer.lines.encode(error), Part.RAW)
        events = answer.events if self.role else without(answer.events, Part.ROLE)
        answer.events = _insert(events, self.after, error, then_end=self.then != "go_on")
        if self.then == "done":
            answer.events = _followed(answer.events, Event(b"[DONE]", Part.DONE))


def _followed(events: Iterable[Event], last: Event) -> Iterator[Event]:
    yield from events
    yield last


@trouble("half_json")
class HalfJson(Trouble, frozen=True):
    """An event whose JSON stops in the middle, after ``after`` content chunks; the stream then goes on."""

    after: Chunks = 0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the half event in."""
        if answer.events is not None:
            half = b'{"id":"chatcmpl-half","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"cont'
            answer.events = _insert(answer.events, self.after, Event(half, Part.OTHER))


@trouble("event_is")
class EventIs(Trouble, frozen=True):
    """An event with this text as data after ``after`` content chunks: ``null``, ``[]``, ``{}``, or no JSON at all.

    ``event`` is its name, if it is to have one.
    """

    data: str = "null"
    after: Chunks = 0
    event: str = ""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put it in."""
        if answer.events is None:
            return
        event = Event(self.data.encode(), Part.OTHER)
        if self.event:
            event = Event(b"event: %b\n" % self.event.encode() + answer.lines.encode(event), Part.RAW)
        answer.events = _insert(answer.events, self.after, event)


@trouble("bad_utf8")
class BadUtf8(Trouble, frozen=True):
    """An event after ``after`` content chunks whose text holds bytes that are no UTF-8."""

    after: Chunks = 0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put it in."""
        if answer.events is not None:
            data = b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3"},"finish_reason":null}]}'
            answer.events = _insert(answer.events, self.after, Event(data, Part.OTHER))


@trouble("huge_line")
class HugeLine(Trouble, frozen=True):
    """One line of ``size`` bytes after ``after`` content chunks.

    With ``valid`` it is a chunk with that much text; without, it is a run of letters.
    """

    size: Annotated[int, Meta(ge=1, le=100_000_000)] = 1_048_576
    after: Chunks = 0
    valid: bool = True

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the line in."""
        if answer.events is None:
            return
        line = b"x" * self.size
        if self.valid:
            said = b'"text":"%b"' if request.path == "/v1/completions" else b'"delta":{"content":"%b"}'
            line = b'{"choices":[{"index":0,%b,"finish_reason":null}]}' % (said % line)
        answer.events = _insert(answer.events, self.after, Event(line, Part.CONTENT if self.valid else Part.OTHER))


@trouble("comments_only")
class CommentsOnly(Trouble, frozen=True):
    """``count`` comment lines and no event; then the stream ends, or (``count=0``) it goes on for ever."""

    count: int = 20

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Say comments instead."""
        if answer.events is not None:
            answer.events = self._comments()

    def _comments(self) -> Iterator[Event]:
        said = 0
        while self.count == 0 or said < self.count:
            yield Event(b": keep-alive\n\n", Part.RAW)
            said += 1
