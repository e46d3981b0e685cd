"""Requests that make servers fail: one that did so on two is suspected itself, and no server is blamed for it.

When many different requests are suspected at once it is the servers after all, and so it is when such a request is
answered well. Pure.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from apps.orchestration.fleet import Server

REMEMBERED_FOR = 60.0
"""Seconds."""
KEPT = 1000
TOO_MANY = 3
"""Suspects of the last minute from which on it isn't the requests."""

Damage = Sequence[tuple[Server, str]]
"""The servers that failed, each with the reason."""


class Suspect(NamedTuple):
    """A request, and since when it is one."""

    since: float
    damage: Damage


class Suspects:
    """What one worker suspects, by the bodies of the requests."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Suspect] = OrderedDict()

    def knows(self, body: bytes, now: float) -> bool:
        """Whether a request is suspected."""
        if not self._known:
            return False
        self._forget(now)
        return len(self._known) <= TOO_MANY and _digest(body) in self._known

    def accuse(self, body: bytes, now: float, damage: Damage) -> bool:
        """Remembers a request that failed on two servers; whether it is to blame."""
        self._forget(now)
        digest = _digest(body)
        self._known[digest] = Suspect(now, damage)
        self._known.move_to_end(digest)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return len(self._known) <= TOO_MANY

    def acquit(self, body: bytes) -> Damage:
        """Forgets a request that was answered well; gives what is to be blamed on the servers."""
        suspect = self._known.pop(_digest(body), None)
        return suspect.damage if suspect else ()

    def _forget(self, now: float) -> None:
        """Drops what is long ago."""
        while self._known and next(iter(self._known.values())).since < now - REMEMBERED_FOR:
            self._known.popitem(last=False)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
