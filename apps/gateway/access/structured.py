"""What structured fields (RFC 9651) are needed of to prove who asks: Byte Sequences, alone or in a Dictionary. Pure."""

import base64
import binascii
import re

LABEL = rb"[a-z*][a-z0-9_.*-]*"
"""A key of a Dictionary (RFC 9651, 3.1.2)."""
_LABEL = re.compile(LABEL)
_BYTES = re.compile(rb":([A-Za-z0-9+/]*)={0,2}:")


def byte_sequence(text: bytes) -> bytes | None:
    """The bytes that a Byte Sequence stands for (RFC 9651, 3.3.5); None where it is none."""
    found = _BYTES.fullmatch(text.strip(b" \t"))
    if found is None:
        return None
    try:
        return base64.b64decode(found[1] + b"=" * (-len(found[1]) % 4))
    except binascii.Error:
        return None


def byte_sequences(text: bytes) -> dict[bytes, bytes] | None:
    """What is in a Dictionary of Byte Sequences; None where it is none, or says something twice."""
    found: dict[bytes, bytes] = {}
    for member in text.split(b","):
        label, _, value = member.strip(b" \t").partition(b"=")
        decoded = byte_sequence(value)
        if decoded is None or label in found or not _LABEL.fullmatch(label):
            return None
        found[label] = decoded
    return found
