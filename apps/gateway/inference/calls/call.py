"""One server that is asked for one request: its place there, and what the record says of it."""

import time
from typing import Generic, TypeVar

from apps.audit.record import Entry as Record
from apps.gateway.limits.waiting import Place
from apps.gateway.metrics import attempt_ended
from apps.orchestration.fleet import Server
from apps.orchestration.health.pace import Key

T = TypeVar("T")


class Call(Generic[T]):
    """Stands in the record from its beginning on: what is told before it ends counts it too."""

    __slots__ = (
        "answer",
        "entry",
        "is_over",
        "is_trial",
        "key",
        "left",
        "paid_from",
        "place",
        "server",
        "started",
    )

    answer: T

    def __init__(self, server: Server, place: Place | None, key: Key, *, is_trial: bool = False):
        self.server = server
        self.place = place
        self.key = key
        self.is_trial = is_trial
        self.is_over = False
        """Whether it is known what came of it."""
        self.started = 0.0
        self.paid_from = 0.0
        """When it began to be paid for by the request whose call it is: later than it `started`, where that has taken
        it over.
        """
        self.left: float | None = None
        """When the server was let go."""
        self.entry: dict[str, str | int | float] = {"server": server.server_id, "outcome": "cancelled", "ms": 0.0}

    def begin(self, record: Record) -> None:
        """The server is being asked."""
        self.started = self.paid_from = time.monotonic()
        record.server = self.server.server_id
        record.attempts.append(self.entry)

    @property
    def is_running(self) -> bool:
        """Whether the server is at work for it, and the place taken."""
        return bool(self.started) and self.left is None

    @property
    def seconds(self) -> float:
        """Of the server's time that its request pays, until now."""
        return (time.monotonic() if self.left is None else self.left) - self.paid_from

    def leave(self) -> None:
        """The server is let go."""
        self.left = time.monotonic()

    def end(self, outcome: str) -> float:
        """Says what came of it; gives its seconds until now."""
        self.is_over = True
        seconds = time.monotonic() - self.started
        self.entry["outcome"], self.entry["ms"] = outcome, round(seconds * 1000, 3)
        attempt_ended(self.server.server_id, self.key.model, outcome)
        return seconds
