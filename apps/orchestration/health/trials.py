"""When a server that is out is tried again: by one real request after 1, 2, 4 … seconds.

While its model has no other server the pause stays short, so that service is back within seconds of the server. Pure.
"""

from dataclasses import dataclass

FIRST_BACKOFF = 1.0
LONELY_BACKOFF = 4.0
"""Longest pause, in seconds, between trials when every server of a model is out."""


@dataclass(slots=True)
class Trials:
    """Of one server; `retry_at` is None while it is in the rotation."""

    retry_at: float | None = None
    backoff: float = 0.0
    trying_since: float | None = None

    def put_off(self, now: float, longest: float) -> None:
        """It goes out, or a trial was in vain: the next one comes twice as late as the last did."""
        self.backoff = min(self.backoff * 2 or FIRST_BACKOFF, longest)
        self.retry_at = now + self.backoff

    def go_out(self, now: float) -> None:
        """It goes out, whatever was before."""
        self.backoff = FIRST_BACKOFF
        self.retry_at = now + self.backoff

    def end(self) -> None:
        """It is in the rotation again."""
        self.retry_at = self.trying_since = None

    def wait(self, now: float, *, lonely: bool) -> float:
        """Seconds until it may be tried; `lonely` where its model has no other."""
        if self.retry_at is None:
            return 0.0
        excess = max(0.0, self.backoff - LONELY_BACKOFF) if lonely else 0.0
        return self.retry_at - excess - now

    def is_due(self, now: float, limit: float, *, lonely: bool) -> bool:
        """Whether it may be tried now: a trial that was begun is waited for, up to the `limit` in seconds."""
        if self.trying_since is not None and now - self.trying_since < limit:
            return False
        return self.wait(now, lonely=lonely) <= 0

    def begin(self, now: float) -> None:
        """A request is on its way there, so that no second one follows."""
        if self.retry_at is not None:
            self.trying_since = now

    def postpone(self, until: float) -> None:
        """Another worker tries it, so the next trial is not before `until`."""
        if self.retry_at is not None:
            self.trying_since = None
            self.retry_at = until
            self.backoff = min(self.backoff, LONELY_BACKOFF)  # the lease keeps the pace from here on
