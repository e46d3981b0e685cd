"""What the traffic of this worker says of each server: who is out, and when it may be tried again.

A refused connection ejects at once, other failures after `eject_after` in a row. An ejected server is tried again by
one real request after 1, 2, 4 … seconds; while its model has no other server the pause stays short, so that service
is back within seconds of the server. Knows no clock but the one handed in.
"""

from dataclasses import dataclass

FIRST_BACKOFF = 1.0
LONELY_BACKOFF = 4.0
"""Longest pause, in seconds, between trials when every server of a model is out."""


@dataclass(slots=True)
class Standing:
    """One server as this worker sees it; `retry_at` is None while it is in the rotation."""

    failures: int = 0
    retry_at: float | None = None
    backoff: float = 0.0
    trying_since: float | None = None


class Standings:
    """All servers' standings. Only servers in trouble have an entry, so the healthy path is one look-up."""

    def __init__(self, *, eject_after: int, max_backoff: float, trial_limit: float):
        self._eject_after = eject_after
        self._max_backoff = max_backoff
        self._trial_limit = trial_limit
        self._troubled: dict[str, Standing] = {}

    def __getitem__(self, server_id: str) -> Standing | None:
        return self._troubled.get(server_id)

    def in_rotation(self, server_id: str) -> bool:
        """Whether ordinary traffic may go there."""
        standing = self._troubled.get(server_id)
        return standing is None or standing.retry_at is None

    def trial_due(self, server_id: str, now: float, *, lonely: bool = False) -> bool:
        """Whether an ejected server may get its one trial now."""
        return self.retry_in(server_id, now, lonely=lonely) <= 0 and not self._trying(server_id, now)

    def retry_in(self, server_id: str, now: float, *, lonely: bool = False) -> float:
        """Seconds until an ejected server may be tried; `lonely` where its model has no other."""
        standing = self._troubled.get(server_id)
        if standing is None or standing.retry_at is None:
            return 0.0
        excess = max(0.0, standing.backoff - LONELY_BACKOFF) if lonely else 0.0
        return standing.retry_at - excess - now

    def begin_trial(self, server_id: str, now: float) -> None:
        """Marks that a request is on its way to an ejected server, so that no second one follows."""
        if (standing := self._troubled.get(server_id)) and standing.retry_at is not None:
            standing.trying_since = now

    def abandon_trial(self, server_id: str) -> None:
        """The trial's client left before there was an answer: the next request may try."""
        if standing := self._troubled.get(server_id):
            standing.trying_since = None

    def begun(self, server_id: str) -> bool:
        """Takes the good beginning of a stream; True when it brings the server back. Earlier failures still count
        until a whole answer: a server that breaks off every stream goes out all the same.
        """
        standing = self._troubled.get(server_id)
        if standing is None or standing.retry_at is None:
            return False
        standing.retry_at = standing.trying_since = None
        return True

    def succeeded(self, server_id: str) -> bool:
        """Takes a good answer; True when it brings the server back."""
        standing = self._troubled.pop(server_id, None)
        return standing is not None and standing.retry_at is not None

    def failed(self, server_id: str, now: float, *, refused: bool = False, trial: bool = False) -> bool:
        """Takes a failure, of the one trial of an ejected server or of any other request; True when it ejects."""
        standing = self._troubled.setdefault(server_id, Standing())
        standing.failures += 1
        was_in = standing.retry_at is None
        if trial:
            standing.trying_since = None
        if was_in and not refused and standing.failures < self._eject_after:
            return False
        if not was_in and not trial:
            return False  # a request that was under way when the server went out says nothing new
        standing.backoff = min(standing.backoff * 2 or FIRST_BACKOFF, self._max_backoff)
        standing.retry_at = now + standing.backoff
        return was_in

    def forget_all_but(self, server_ids: frozenset[str]) -> None:
        """Drops servers that are no longer in the fleet."""
        self._troubled = {name: standing for name, standing in self._troubled.items() if name in server_ids}

    def _trying(self, server_id: str, now: float) -> bool:
        standing = self._troubled.get(server_id)
        return bool(standing and standing.trying_since is not None and now - standing.trying_since < self._trial_limit)
