"""Requests that make servers fail: one that did so on two is suspected itself, and no server is blamed for it.

When many different requests are suspected at once it is the servers after all. Pure.
"""

import hashlib
from collections import OrderedDict

REMEMBERED_FOR = 60.0
"""Seconds."""
KEPT = 1000
TOO_MANY = 3
"""Suspects of the last minute from which on it isn't the requests."""


class Suspects:
    """What one worker suspects, by the bodies of the requests."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def knows(self, body: bytes, now: float) -> bool:
        """Whether a request is suspected."""
        if not self._known:
            return False
        self._forget(now)
        return len(self._known) <= TOO_MANY and _digest(body) in self._known

    def accuse(self, body: bytes, now: float) -> bool:
        """Remembers a request that failed on two servers; whether it is to blame."""
        self._forget(now)
        digest = _digest(body)
        self._known[digest] = now
        self._known.move_to_end(digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return len(self._known) <= TOO_MANY

    def _forget(self, now: float) -> None:
        """Drops what is long ago."""
        while self._known and next(iter(self._known.values())) < now - REMEMBERED_FOR:
            self._known.popitem(last=False)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
