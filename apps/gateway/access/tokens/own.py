"""Citadel's own tokens: what an API key gives out for a while, to whom the key itself is not to be given.

A token names the digest of its key's secret, so it is worth nothing any more when the key is revoked, expires, or gets
another secret without grace. It is signed with HMAC-SHA-256: who verifies it is who makes it. When it ends goes by the
clock that all workers have in common, so that one whose own is off takes it for as long as the others.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence

import jwt
import msgspec

from apps.gateway.access.tokens.heads import invalid
from citadel.caller import Caller

ISSUER = "citadel"
ALGORITHM = "HS256"
_PERSON = b"citadel tokens"


class Claims(msgspec.Struct, frozen=True):
    """What an own token says: whose it is, its own name, since when and until when, and what it may at most."""

    key: str
    jti: str
    iat: float
    exp: float
    scope: str | None = None

    @property
    def digest(self) -> bytes:
        """Of the key that gave it out."""
        return base64.urlsafe_b64decode(self.key)

    @property
    def scopes(self) -> frozenset[str] | None:
        """The permissions that it has at most; None for all of its key."""
        return None if self.scope is None else frozenset(self.scope.split())


class OwnTokens:
    """Makes and reads them, under this installation's secret, by a common clock in seconds since the epoch."""

    def __init__(self, secret: str, clock: Callable[[], float]):
        self._clock = clock
        key = hashlib.sha512(secret.encode()).digest()
        self._key = hashlib.blake2b(key=key, digest_size=32, person=_PERSON).digest()

    def lifetime(self, holder: Caller, most: int) -> int:
        """Seconds for which a token is good: no longer than the secret that it is given for, and at least one."""
        return most if holder.expires is None else max(1, min(most, int(holder.expires - self._clock())))

    def make(self, digest: bytes, scopes: Sequence[str] | None, seconds: int) -> str:
        """A token of the key with that digest, good for so many seconds."""
        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": ISSUER,
            "iat": now,
            "exp": now + seconds,
            "jti": secrets.token_urlsafe(12),
            "key": base64.urlsafe_b64encode(digest).decode(),
        }
        if scopes is not None:
            claims["scope"] = " ".join(sorted(set(scopes)))
        return jwt.encode(claims, self._key, ALGORITHM)

    def read(self, token: bytes) -> Claims:
        """What a token of ours says; Unauthenticated where it isn't, or not any more."""
        try:
            said = jwt.decode(
                token,
                self._key,
                [ALGORITHM],
                options={
                    "require": ["exp", "iat", "aud", "iss", "jti", "key"],
                    "verify_exp": False,
                    "verify_iat": False,  # by this machine's clock, both
                },
                audience=ISSUER,
                issuer=ISSUER,
            )
        except jwt.InvalidTokenError:
            raise invalid("its signature or its claims are wrong") from None
        claims = msgspec.convert(said, Claims)
        self.check_end(claims)
        return claims

    def check_end(self, claims: Claims) -> None:
        """Unauthenticated where a token has ended since it was read."""
        if claims.exp <= self._clock():
            raise invalid("it has expired")
