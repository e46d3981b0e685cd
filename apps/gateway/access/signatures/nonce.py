"""A nonce: what makes a signed request good for one time, in all workers together."""

import hashlib
from typing import NamedTuple

from apps.gateway.access.signatures.signed import invalid
from citadel.errors import Unauthenticated, Unavailable
from citadel.redis import Redis, RedisError


class Nonce(NamedTuple):
    """One that is still to be used up."""

    name: str
    """Under which Redis remembers it."""
    seconds: int
    """For how long: as long as the signature could come again."""

    async def use_up(self, redis: Redis) -> None:
        """Does so in a call of its own; Unauthenticated where that was done before, Unavailable while Redis is away."""
        try:
            is_new = await redis.call("SET", self.name, 1, "NX", "EX", self.seconds)
        except RedisError:
            raise unchecked() from None
        if not is_new:
            raise used_before()


def nonce_of(key_id: str, nonce: bytes, seconds: int) -> Nonce:
    """The one that the holder of a key has sent."""
    return Nonce(f"access:nonce:{key_id}:{hashlib.blake2b(nonce, digest_size=16).hexdigest()}", seconds)


def used_before() -> Unauthenticated:
    """What who sends a signature for the second time is told."""
    return invalid("its nonce has been used before", "nonce_used")


def unchecked() -> Unavailable:
    """What who signs is told while Redis can't be asked."""
    message = "Signed requests can't be checked at the moment: send this one again with a new nonce."
    return Unavailable(message, code="auth_unavailable", retry_after=2)
