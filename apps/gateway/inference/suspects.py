"""Requests that make servers fail, or wait in vain: one that did so on two is suspected itself, in all workers.

It gets one such server more each time that it is sent again, and no server is blamed for it. An answer clears it. When
many different requests are suspected at once it is the servers after all.
"""

import hashlib
from collections import OrderedDict

from apps.orchestration.health.watch import Watch

REMEMBERED_FOR = 60.0
"""Seconds."""
KEPT = 1000
TOO_MANY = 3
"""Suspects of the last minute from which on it isn't the requests."""


class Suspects:
    """What one worker suspects, by the bodies of the requests, and through the board all others."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def suspected_at(self, body: bytes, now: float) -> float | None:
        """Since when a request is suspected; None where it isn't. Both in seconds, monotonic."""
        if not (self._known or self._watch.suspects):
            return None
        known = self._all(now)
        return known.get(_digest(body)) if len(known) <= TOO_MANY else None

    def accuse(self, body: bytes, now: float) -> bool:
        """Remembers a request that failed on two servers; whether it is to blame."""
        digest = _digest(body)
        self._known[digest] = now
        self._known.move_to_end(digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        self._watch.suspect(digest)
        return len(self._all(now)) <= TOO_MANY

    def absolve(self, body: bytes) -> None:
        """A server has answered it."""
        digest = _digest(body)
        self._known.pop(digest, None)
        self._watch.absolve(digest)

    def _all(self, now: float) -> dict[bytes, float]:
        """Who is suspected in any worker, and since when."""
        while self._known and next(iter(self._known.values())) < now - REMEMBERED_FOR:
            self._known.popitem(last=False)
        told = {digest: at for digest, at in self._watch.suspects.items() if at >= now - REMEMBERED_FOR}
        return {**self._known, **told}


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
