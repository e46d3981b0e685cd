"""The mark that a Citadel puts on whatever it sends to servers, by which it knows what comes back to it.

A request that carries it has gone round in a circle: a server of the fleet leads here again.
"""

import hmac
from collections.abc import Iterable

from citadel import __version__

HEADER = "x-citadel-via"
"""The marks of the Citadels that a request has passed."""
VIA = HEADER.encode()


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
