"""What structured fields (RFC 9651) are needed of to prove who asks: Byte Sequences, alone or in a Dictionary. Pure."""

import binascii
import re

LABEL = rb"[a-z*][a-z0-9_.*-]*"
"""A key of a Dictionary (RFC 9651, 3.1.2)."""
_SEQUENCE = rb"[ \t]*:([A-Za-z0-9+/]*)={0,2}:[ \t]*"
_BYTES = re.compile(_SEQUENCE)
_MEMBER = re.compile(rb"[ \t]*(" + LABEL + rb")=" + _SEQUENCE)


def byte_sequence(text: bytes) -> bytes | None:
    """The bytes that a Byte Sequence stands for (RFC 9651, 3.3.5); None where it is none."""
    found = _BYTES.fullmatch(text)
    return _decoded(found[1]) if found else None


def byte_sequences(text: bytes) -> dict[bytes, bytes] | None:
    """What is in a Dictionary of Byte Sequences; None where it is none, or says something twice."""
    members: dict[bytes, bytes] = {}
    for member in text.split(b","):
        found = _MEMBER.fullmatch(member)
        decoded = _decoded(found[2]) if found else None
        if found is None or decoded is None or found[1] in members:
            return None
        members[found[1]] = decoded
    return members


def _decoded(unpadded: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(unpadded + b"=" * (-len(unpadded) % 4))
    except binascii.Error:
        return None
