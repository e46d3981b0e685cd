"""Digests of a request's body: those that it claims (Content-Digest, RFC 9530), and those that it has."""

import asyncio
import hashlib

from apps.gateway.access.signatures.signed import invalid
from apps.gateway.access.structured import byte_sequences

ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
"""Those of RFC 9530 that are no broken ones."""
SLICE = 256 * 1024
"""Bytes that are digested in a fraction of a millisecond: others run in between."""


def claimed(field: bytes) -> dict[str, bytes]:
    """The digests in a Content-Digest that can be verified; Unauthenticated where there is none."""
    members = byte_sequences(field)
    if members is None:
        raise invalid("the header content-digest is not like sha-256=:BASE64:")
    known = {name: members[name.encode()] for name in ALGORITHMS if name.encode() in members}
    if not known:
        raise invalid("the header content-digest names neither sha-256 nor sha-512")
    return known


async def digest_of(body: bytes, algorithm: str) -> bytes:
    """The digest of a body by one of `ALGORITHMS`."""
    digest = ALGORITHMS[algorithm](memoryview(body)[:SLICE])
    for start in range(SLICE, len(body), SLICE):
        await asyncio.sleep(0)
        digest.update(memoryview(body)[start : start + SLICE])
    return digest.digest()
