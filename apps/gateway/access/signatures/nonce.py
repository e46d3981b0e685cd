"""A nonce: what makes a signed request good for one time, in all workers together."""

import hashlib
from typing import NamedTuple

from apps.gateway.access.signatures.signed import invalid
from apps.gateway.limits.scripts import USE_UP
from citadel.caller import Caller
from citadel.errors import LimitExceeded, Unauthenticated, Unavailable
from citadel.permissions import REGISTER_SERVERS, may_somewhere
from citadel.redis import Redis, RedisError

MINUTES = 30
"""In which the new nonces of a key are counted (`nonces.lua`)."""
LEAST, MOST = 10_000, 2_000_000
"""New nonces that any key may bring in these, and that none may bring more of: 150 bytes of Redis each."""


class Nonce(NamedTuple):
    """One that is still to be used up, as scripts take it."""

    key_id: str
    """Whose it is."""
    name: str
    """Under which Redis remembers it."""
    seconds: int
    """For how long: as long as the signature could come again."""
    most: int
    """New ones that its key may bring in so many `MINUTES`."""

    async def use_up(self, redis: Redis) -> None:
        """Does so in a call of its own; Unauthenticated where that was done before, LimitExceeded where its key brings
        too many, Unavailable while Redis is away.
        """
        try:
            used = await redis.script(USE_UP, self)
        except RedisError:
            raise unchecked() from None
        if used:
            raise used_before() if used < 0 else too_many(used)


def nonce_of(key_id: str, nonce: bytes, seconds: int, most: int) -> Nonce:
    """The one that the holder of a key has sent."""
    return Nonce(key_id, hashlib.blake2b(nonce, digest_size=16).hexdigest(), seconds, most)


def most_of(caller: Caller, others: int) -> int:
    """How many new ones a key may bring in so many `MINUTES`: twice what it may ask for, since what its limits refuse
    has one too. `others` is what it may ask for in a minute beside inference; 0 is no limit.
    """
    requests = caller.limits.requests
    if not requests or not others or may_somewhere(caller, REGISTER_SERVERS):
        return MOST
    return min(MOST, max(LEAST, 2 * MINUTES * (requests + others)))


def used_before() -> Unauthenticated:
    """What who sends a signature for the second time is told."""
    return invalid("its nonce has been used before", "nonce_used")


def too_many(retry_ms: int) -> LimitExceeded:
    """What who signs is told when its key has brought as many nonces as it may, for so long."""
    message = "This key has signed more requests than may be remembered."
    return LimitExceeded(message, code="nonce_limit_exceeded", retry_after=retry_ms / 1000)


def unchecked() -> Unavailable:
    """What who signs is told while Redis can't be asked."""
    message = "Signed requests can't be checked at the moment: send this one again with a new nonce."
    return Unavailable(message, code="auth_unavailable", retry_after=2)
