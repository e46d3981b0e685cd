"""The simple form: four headers, and an HMAC-SHA-256 (RFC 2104) over six lines that any program can put together. Pure.

The lines are `citadel-hmac-sha256`, the method, the path (with ? and the query where there is one), the timestamp, the
nonce, and the SHA-256 of the body in hexadecimal digits; the last one has no end of line.
"""

import re

from apps.gateway.access.signatures.signed import HMAC, Message, Signed, invalid

KEY, TIMESTAMP, NONCE, SIGNATURE = b"x-citadel-key", b"x-citadel-timestamp", b"x-citadel-nonce", b"x-citadel-signature"
FIRST_LINE = b"citadel-hmac-sha256"
_RULES = (
    (KEY, re.compile(rb"[0-9A-Za-z]{1,32}"), "the public id of a key: what stands behind 'ctd_' or 'cts_' in it"),
    (TIMESTAMP, re.compile(rb"[0-9]{1,12}"), "the time in whole seconds since 1970"),
    (NONCE, re.compile(rb"[0-9A-Za-z_.~+/=-]{16,128}"), "16 to 128 letters, digits or characters of _.~+/=-"),
    (SIGNATURE, re.compile(rb"[0-9A-Fa-f]{64}"), "64 hexadecimal digits"),
)


def read(message: Message) -> Signed:
    """What the headers say; Unauthenticated names the one that is missing or wrong."""
    for name, pattern, meaning in _RULES:
        value = message.headers.get(name)
        if value is None:
            raise invalid(f"the header {name.decode()} is missing")
        if not pattern.fullmatch(value):
            raise invalid(f"the header {name.decode()} must be {meaning}")
    key, timestamp, nonce, signature = (message.headers[name] for name, _, _ in _RULES)
    base = b"\n".join((FIRST_LINE, message.method, message.target, timestamp, nonce, b""))
    return Signed(
        key.decode(), int(timestamp), None, nonce, HMAC, bytes.fromhex(signature.decode()), base, digests=None
    )
