"""Trouble at the end: the connection or the whole process goes away too early."""

from __future__ import annotations

from typing import Any

from ..answer import Answer, Cue, Cut, HowToCut, Point
from ..request import Request
from .trouble import Trouble, trouble


@trouble("die")
class Die(Trouble, frozen=True):
    """The answer ends ``at`` a point: ``fin`` closes, ``rst`` resets, ``exit`` kills the process, ``stop`` stops it.

    All that was sent before has reached the client's kernel. ``at=end`` leaves out only what ends the chunked coding.
    """

    at: str = "chunk:1"
    how: HowToCut = "fin"

    def apply(self, answer: Answer, request: Request, backend: Any) -> None:
        """Cut there."""
        answer.cues.append(Cue(Point.parse(self.at), Cut(self.how)))
