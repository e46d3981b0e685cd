"""Legal, and seen on real servers: what must pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..answer import Answer, Event, Part
from ..request import Request
from .trouble import Trouble, trouble

UTF8_BOM = b"\xef\xbb\xbf"


@trouble("lines")
class LineEnds(Trouble, frozen=True):
    """Line ends of a stream: ``lf``, ``crlf``, or ``cr`` alone (legal by the standard, and hardly anybody reads it)."""

    ends: Literal["lf", "crlf", "cr"] = "crlf"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set the line ends."""
        answer.lines.end = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}[self.ends]


@trouble("no_space")
class NoSpace(Trouble, frozen=True):
    """``data:`` with nothing between it and the value."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Leave the space out."""
        answer.lines.prefix = b"data:"


@trouble("multi_line")
class MultiLine(Trouble, frozen=True):
    """The JSON of each event over several ``data`` lines."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Write it indented."""
        answer.lines.indent = True


@trouble("comments")
class Comments(Trouble, frozen=True):
    """A comment before each event."""

    text: str = "ping"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put comments in between."""
        answer.lines.before += f": {self.text}\n\n".encode()


@trouble("fields")
class Fields(Trouble, frozen=True):
    """``event``, ``id`` and ``retry`` lines and an unknown one before each event's data."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the lines in."""
        answer.lines.before += b"event: message\nid: 1\nretry: 1000\nunknown\n"


@trouble("bom")
class ByteOrderMark(Trouble, frozen=True):
    """The stream begins with U+FEFF."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the mark first."""
        if answer.events is not None:
            answer.lines.start = UTF8_BOM


@trouble("together")
class Together(Trouble, frozen=True):
    """``events`` events in one packet."""

    events: Annotated[int, Meta(ge=1, le=100_000)] = 4

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set how many."""
        answer.wire.together = self.events


@trouble("usage")
class UsageStyle(Trouble, frozen=True):
    """Where a stream tells its usage.

    ``last``: in an event of its own with empty choices (OpenAI); ``null_each``: that, and ``"usage":null`` in each
    chunk before it (vLLM); ``in_finish``: in the finish event (Ollama of old); ``running``: counts so far in each chunk
    (vLLM's continuous_usage_stats); ``missing``: nowhere, asked for or not, plain answers included.
    """

    style: Literal["last", "null_each", "in_finish", "running", "missing"] = "in_finish"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Move the usage."""
        if answer.events is not None:
            answer.events = _usage_moved(list(answer.events), self.style)
        elif self.style == "missing" and b'"usage"' in answer.body:
            answer.body = msgspec.json.encode(_without_usage(answer.body))


def _without_usage(body: bytes) -> Any:
    fields = msgspec.json.decode(body, type=dict[str, Any])
    return {name: value for name, value in fields.items() if name != "usage"}


def _usage_moved(events: list[Event], style: str) -> Iterator[Event]:
    written = sum(event.part is Part.CONTENT for event in events)
    usage = {"prompt_tokens": 5, "completion_tokens": written, "total_tokens": 5 + written}
    told = [event.payload["usage"] for event in events if event.part is Part.USAGE and isinstance(event.payload, dict)]
    usage = told[0] if told else usage
    envelope: dict[str, Any] = {}
    so_far = 0
    for event in events:
        if event.part is Part.USAGE:
            continue
        if isinstance(event.payload, dict):
            envelope = {name: value for name, value in event.payload.items() if name not in ("choices", "usage")}
            so_far += event.part is Part.CONTENT
            yield Event(envelope | _choices(event.payload) | _usage_in(event, style, usage, so_far), event.part)
            continue
        if event.part is Part.DONE and style in ("last", "null_each"):
            yield Event(envelope | {"choices": [], "usage": usage}, Part.USAGE)
        yield event


def _choices(payload: dict[str, Any]) -> dict[str, Any]:
    return {"choices": payload["choices"]} if "choices" in payload else {}


def _usage_in(event: Event, style: str, usage: dict[str, Any], so_far: int) -> dict[str, Any]:
    if style == "null_each":
        return {"usage": None}
    if style == "running":
        total = usage["prompt_tokens"] + so_far
        return {"usage": {**usage, "completion_tokens": so_far, "total_tokens": total}}
    return {"usage": usage} if style == "in_finish" and event.part is Part.FINISH else {}


@trouble("empty_finish")
class EmptyFinish(Trouble, frozen=True):
    """The chunks of a stream before the end have an empty text as their finish_reason, not null."""

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Put the texts in."""
        if answer.events is not None:
            answer.events = map(_with_empty_finish, answer.events)


def _with_empty_finish(event: Event) -> Event:
    if not isinstance(event.payload, dict) or not event.payload.get("choices"):
        return event
    choices = [{**choice, "finish_reason": choice["finish_reason"] or ""} for choice in event.payload["choices"]]
    return Event({**event.payload, "choices": choices}, event.part)


@trouble("unknown_fields")
class UnknownFields(Trouble, frozen=True):
    """Fields that nobody knows: one at the top of each event or plain body."""

    name_of_field: str = "x_unknown"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Add the field."""
        if answer.events is not None:
            answer.events = self._added(answer.events)
        elif answer.body.endswith(b"}"):
            answer.body = answer.body[:-1] + b',"%b":{"kept":[1,2.5,null]}}' % self.name_of_field.encode()

    def _added(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event.payload, dict):
                yield Event({**event.payload, self.name_of_field: {"kept": [1, 2.5, None]}}, event.part)
            else:
                yield event
