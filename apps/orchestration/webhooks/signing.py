"""How a webhook is signed, and a signature checked, as Standard Webhooks says ("Signature scheme"). Pure.

Secrets are made of the installation's own and a salt: they need not be kept, and a stolen table tells none.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence

from citadel.errors import Unauthenticated

PREFIX = "whsec_"
TOLERANCE = 300
"""Seconds that a message's time may be off."""
LONGEST_ID = 255
MOST_SIGNATURES = 8


def secret_of(installation: str, salt: str) -> str:
    """The secret that `salt` stands for, as both sides write it."""
    key = hashlib.sha512(installation.encode()).digest()
    return PREFIX + base64.b64encode(hmac.digest(key, b"webhook:" + salt.encode(), "sha256")).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, `v1,` and base64."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = hmac.digest(key, b"%b.%d.%b" % (message_id.encode(), timestamp, body), hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What a message carries: a signature by each secret, so that a receiver may know the old or the new one."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in secrets),
    }


def check(secret: str, carried: Mapping[bytes, bytes], body: bytes, now: float) -> str:
    """The id of a message that `secret` has signed within `TOLERANCE`; Unauthenticated where it hasn't."""
    message_id, timestamp = _identified(carried)
    expected = sign(secret, message_id, timestamp, body).encode()
    given = carried.get(b"webhook-signature", b"").split(b" ")[:MOST_SIGNATURES]
    # No early end: how long it takes tells nothing.
    if not sum(hmac.compare_digest(expected, signature) for signature in given):
        raise Unauthenticated(
            "The webhook's signature is not that of its id, timestamp and body.", code="invalid_signature"
        )
    if abs(now - timestamp) > TOLERANCE:
        message = (
            f"The webhook's timestamp is more than {TOLERANCE} seconds off: set the sender's clock, or send it anew."
        )
        raise Unauthenticated(message, code="clock_skew")
    return message_id


def _identified(carried: Mapping[bytes, bytes]) -> tuple[str, int]:
    """Id and timestamp, if they are such."""
    message_id = carried.get(b"webhook-id", b"").decode("latin-1")
    told = carried.get(b"webhook-timestamp", b"")
    if not message_id or len(message_id) > LONGEST_ID or not message_id.isascii() or not message_id.isprintable():
        raise Unauthenticated("A signed webhook has its id in webhook-id.", code="invalid_signature")
    if not (told.isdigit() and len(told) <= 12):
        raise Unauthenticated(
            "A signed webhook has its time, in seconds, in webhook-timestamp.", code="invalid_signature"
        )
    return message_id, int(told)
