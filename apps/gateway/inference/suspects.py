"""Requests that make servers fail: one that did so on two is suspected itself, and no server is blamed for it.

When many different requests are suspected at once it is the servers after all. Pure.
"""

from collections import OrderedDict

REMEMBERED_FOR = 60.0
"""Seconds."""
KEPT = 1000
TOO_MANY = 3
"""Suspects of the last minute from which on it isn't the requests."""


class Suspects:
    """What one worker suspects, by a digest of the request's body."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known and len(self._known) <= TOO_MANY

    def __bool__(self) -> bool:
        return bool(self._known)

    def accuse(self, digest: bytes, now: float) -> bool:
        """Remembers a request that failed on two servers; whether it is to blame."""
        self.forget(now)
        self._known[digest] = now
        self._known.move_to_end(digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return len(self._known) <= TOO_MANY

    def forget(self, now: float) -> None:
        """Drops what is long ago."""
        while self._known and next(iter(self._known.values())) < now - REMEMBERED_FOR:
            self._known.popitem(last=False)
