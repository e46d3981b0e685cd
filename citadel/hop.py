"""The mark that a Citadel puts on whatever it sends to servers, by which it knows what comes back to it.

A request that carries it has gone round in a circle: a server of the fleet leads here again.
"""

import hmac
from collections.abc import Mapping

HEADER = "x-citadel-via"
"""The marks of the Citadels that a request has passed."""
_HEADER = HEADER.encode()


def mark(secret: str) -> str:
    """The mark of whoever has this secret: all processes of one Citadel, and nobody else."""
    return hmac.digest(secret.encode(), b"hop", "sha256").hex()[:16]


def has_passed(headers: Mapping[bytes, bytes], own: str) -> bool:
    """Whether a request with these headers carries the mark `own`."""
    via = headers.get(_HEADER)
    return via is not None and own.encode() in (name.strip() for name in via.split(b","))
