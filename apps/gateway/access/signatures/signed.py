"""A signed request as it came, and what it says of itself before anything is believed of it. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from citadel.errors import Unauthenticated
from citadel.origin import origin_of

HMAC, ED25519 = "hmac-sha256", "ed25519"
"""Algorithms by which requests may be signed, as RFC 9421 calls them."""


class Message(NamedTuple):
    """A request as far as it can be signed."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    query: bytes
    """Without the question mark."""
    headers: Mapping[bytes, bytes]
    body: bytes

    @property
    def target(self) -> bytes:
        """Path and query."""
        return self.path + b"?" + self.query if self.query else self.path


class Signed(NamedTuple):
    """What a request says of its signature."""

    key_id: str
    created: int
    """Seconds since the epoch."""
    expires: int | None
    nonce: bytes
    algorithm: str
    signature: bytes
    base: bytes
    """What is signed; where `digests` is None the SHA-256 of the body follows, in hexadecimal digits."""
    digests: Mapping[str, bytes] | None
    """Of the body, by algorithm, which the base covers."""


def received(
    scope: Mapping[str, Any], headers: Mapping[bytes, bytes], body: bytes, public_url: str | None = None
) -> Message:
    """A request of HTTP or the opening one of a WebSocket, at the address by which its client has found us."""
    scheme, host = origin_of(scope["scheme"], headers.get(b"host", b""), public_url)
    method: str = scope.get("method", "GET")
    path, query = scope["raw_path"] or b"/", scope["query_string"]
    return Message(method.encode(), scheme.encode(), host.encode("latin-1"), path, query, headers, body)


def invalid(reason: str, code: str = "invalid_signature") -> Unauthenticated:
    """The error for a signature; the reason tells its sender nothing that the request doesn't say."""
    return Unauthenticated(f"The signature is not accepted: {reason}.", code=code)
