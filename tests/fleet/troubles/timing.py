"""Trouble with time: slow, stalled, hanging."""

from __future__ import annotations

import math
from typing import Annotated, Any

from msgspec import Meta

from ..answer import Answer, Cue, Place, Point, Wait
from ..request import Request
from .trouble import Trouble, trouble

Milliseconds = Annotated[float, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]


@trouble("slow_start")
class SlowStart(Trouble, frozen=True):
    """The first byte comes after ``ms``."""

    ms: Milliseconds = 1000.0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Wait before anything is sent."""
        answer.cues.append(Cue(Point(Place.REQUEST), Wait(self.ms / 1000)))


@trouble("slow_chunks")
class SlowChunks(Trouble, frozen=True):
    """``ms`` between the events of a stream."""

    ms: Milliseconds = 100.0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Set the pace."""
        answer.pace = self.ms / 1000


@trouble("hang")
class Hang(Trouble, frozen=True):
    """Nothing more from this point on, until the client leaves. ``at=headers``: the head is sent, no body follows."""

    at: str = "request"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Wait for ever there."""
        answer.cues.append(Cue(Point.parse(self.at), Wait(math.inf)))


@trouble("stall")
class Stall(Trouble, frozen=True):
    """A pause of ``seconds`` at one point, then on as if nothing had been."""

    at: str = "chunk:1"
    seconds: Seconds = 30.0

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Wait there."""
        answer.cues.append(Cue(Point.parse(self.at), Wait(self.seconds)))
