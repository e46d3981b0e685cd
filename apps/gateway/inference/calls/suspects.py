"""Requests that make servers fail, or wait in vain: one that did so on two is suspected itself, in all workers.

It gets one such server more each time that it is sent again, and no server is blamed for it. An answer clears it. When
many different requests are suspected at once it is the servers after all.
"""

import hashlib

from apps.orchestration.health.troubles import SUSPECTED_FOR
from apps.orchestration.health.watch import Watch

REMEMBERED_FOR = SUSPECTED_FOR / 1000
"""Seconds."""
TOO_MANY = 3
"""Suspects of the last minute from which on it isn't the requests."""


class Suspects:
    """What is suspected, by the bodies of the requests; the watch knows it of all workers."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def suspected_at(self, body: bytes, now: float) -> float | None:
        """Since when a request is suspected; None where it isn't. Both in seconds, monotonic."""
        if not self._watch.suspects:
            return None
        known = self._of_late(now)
        return known.get(_digest(body)) if 0 < len(known) <= TOO_MANY else None

    def accuse(self, body: bytes, now: float) -> bool:
        """Remembers a request that failed on two servers; whether it is to blame."""
        self._watch.suspect(_digest(body), now)
        return len(self._of_late(now)) <= TOO_MANY

    def absolve(self, body: bytes) -> None:
        """A server has answered it."""
        self._watch.absolve(_digest(body))

    def _of_late(self, now: float) -> dict[bytes, float]:
        return {digest: at for digest, at in self._watch.suspects.items() if at >= now - REMEMBERED_FOR}


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
