"""The mark that a Citadel puts on whatever it sends to servers, by which it knows what comes back to it.

A request that carries it has gone round in a circle: a server of the fleet leads here again. So that none does,
Citadels tell each other the *ways* to each model: a way is the marks, in no order, of all Citadels that a request
passes, to the one that has the model on a server of its own.
"""

import hmac
import re
from collections.abc import Iterable
from typing import Any

from citadel import __version__

Way = tuple[str, ...]

HEADER = "x-citadel-via"
"""The marks of the Citadels that a request has passed."""
VIA = HEADER.encode()
MARK = re.compile(r"[\w-]{1,64}", re.ASCII)
MOST_WAYS, LONGEST_WAY = 16, 100
"""Of one model that are kept, and the marks in one."""


def mark(secret: str) -> str:
    """The mark of whoever has this secret: all processes of one Citadel, and nobody else."""
    return hmac.digest(secret.encode(), b"hop", "sha256").hex()[:16]


def introduction(secret: str, purpose: str) -> dict[str, str]:
    """The headers of all that is asked of a server but clients' requests: who asks, what for, and the mark."""
    return {"user-agent": f"Citadel/{__version__} ({purpose})", HEADER: mark(secret)}


def marks_of(lines: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The marks of a request with these headers: several lines are one list (RFC 9110, 5.3)."""
    return b",".join(value for name, value in lines if name == VIA)


def has_passed(via: bytes, own: str) -> bool:
    """Whether the mark `own` is among these."""
    return own.encode() in (name.strip() for name in via.split(b","))


def ways_of(told: Any) -> tuple[Way, ...]:
    """The ways to a model that another Citadel tells; none where it says nothing of them, or no sense."""
    rows = [row for row in told[:MOST_WAYS] if isinstance(row, list)] if isinstance(told, list) else []
    ways = [tuple(sorted({str(name) for name in row})) for row in rows if len(row) <= LONGEST_WAY]
    return fewest(way for way in ways if way and all(map(MARK.fullmatch, way)))


def ways_by(own: str, ways: Iterable[Way]) -> list[Way]:
    """The ways for others to what the Citadel of the mark `own` has by these; where there are none, it holds it."""
    return [(own, *way) for way in ways] or [(own,)]


def ways_past(own: str, ways: Iterable[Way]) -> tuple[Way, ...]:
    """Those of the ways that don't lead through `own`."""
    return tuple(way for way in ways if own not in way)


def fewest(ways: Iterable[Way]) -> tuple[Way, ...]:
    """The ways without those that lead through all that another one does: who can't go there can't go here either."""
    kept: list[Way] = []
    for way in sorted(ways, key=lambda way: (len(way), way)):
        if not any(set(shorter) <= set(way) for shorter in kept):
            kept.append(way)
    return tuple(kept[:MOST_WAYS])
