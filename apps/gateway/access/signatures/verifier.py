"""Who has signed a request: its time, its signature and its body, in that order; then its nonce is to be used up."""

import hmac
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from apps.gateway.access.keys.table import KeyTable, Known, has_ended
from apps.gateway.access.signatures import messages, simple
from apps.gateway.access.signatures.digests import digest_of
from apps.gateway.access.signatures.nonce import Nonce, most_of, nonce_of
from apps.gateway.access.signatures.secret import SigningSecrets
from apps.gateway.access.signatures.signed import ED25519, Signed, invalid, received
from citadel.caller import Caller
from citadel.redis import Redis
from citadel.sections import Config

WINDOW = 300
"""Seconds by which a signature may be older or newer than this worker's clock says."""
CLOCKS = 1200
"""Seconds by which workers' clocks may differ, or one may be set back: nonces are remembered for so much longer."""
MARKS = frozenset({simple.SIGNATURE, simple.KEY, messages.INPUT, messages.SIGNATURE})
UNPROVEN = "it is not made by what belongs to a key in force for this method, address, time, nonce and body"


class Proven(NamedTuple):
    """Who has signed, and the digest of that secret of the key which the proof goes with."""

    caller: Caller
    digest: bytes
    public_key: bytes | None = None
    """Where it has proved it."""


def is_signed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request brings a signature, or a part of one."""
    return not MARKS.isdisjoint(headers)


class Signatures:
    """This worker's view of them."""

    def __init__(self, config: Config, keys: KeyTable, redis: Redis):
        self._public_url = config.server.public_url
        self._others = config.limits.others_per_minute
        self._secret = SigningSecrets(config.secret)
        self._keys = keys
        self._redis = redis

    async def still(self, proven: Proven) -> Caller:
        """Who holds now what a request was proven by; Unauthenticated where nobody does, or Unavailable."""
        if proven.public_key is None:
            return await self._keys.of(proven.digest)
        key_id = proven.caller.key_id
        key = self._keys.named(key_id) or await self._keys.look_up_named(key_id)
        if key is None or key.public_key != proven.public_key or has_ended(key.holders[0]):
            raise invalid("the public key that it was made for is no longer the key's")
        return key.holders[0].without_digest()

    async def prove(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], body: bytes) -> Proven:
        """Who has signed a request, which is used up then; Unauthenticated, LimitExceeded for a key that brings too
        many nonces, or Unavailable while Redis is away.
        """
        proven, nonce = await self.verify(scope, headers, body)
        await self.use_up(nonce)
        return proven

    async def use_up(self, nonce: Nonce) -> None:
        """Makes what was signed with it good no more; Unauthenticated where it is so already, LimitExceeded, or
        Unavailable.
        """
        await nonce.use_up(self._redis)

    async def verify(
        self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], body: bytes
    ) -> tuple[Proven, Nonce]:
        """The same for who uses up the nonce that this gives, before anything comes of the request."""
        message = received(scope, headers, body, self._public_url)
        is_simple = simple.SIGNATURE in headers or simple.KEY in headers
        signed = simple.read(message) if is_simple else messages.read(message)
        now = time.time()
        _check_time(signed, now)
        key = self._keys.named(signed.key_id) or await self._keys.look_up_named(signed.key_id)
        if key is None:
            raise invalid(UNPROVEN)
        base = await _whole_base(signed, body)
        proven = self._proven(key, signed, base)
        if proven is None and (key := await self._keys.look_up_named(signed.key_id)):  # it may have been rotated
            proven = self._proven(key, signed, base)
        if proven is None:
            raise invalid(UNPROVEN)
        await _check_body(signed, body)
        seconds, most = math.ceil(signed.created + WINDOW - now) + CLOCKS, most_of(proven.caller, self._others)
        return proven, nonce_of(signed.key_id, signed.nonce, seconds, most)

    def _proven(self, key: Known, signed: Signed, base: bytes) -> Proven | None:
        """Who holds the key, if what belongs to it has signed this and its time is not over."""
        for caller in key.holders:
            if has_ended(caller):
                continue
            if signed.algorithm == ED25519:
                if key.public_key is not None and _is_by(key.public_key, signed.signature, base):
                    return Proven(caller.without_digest(), caller.digest, key.public_key)
            else:
                made = hmac.digest(self._secret(signed.key_id, caller.digest), base, "sha256")
                if hmac.compare_digest(made, signed.signature):
                    return Proven(caller, caller.digest)
        return None


def _check_time(signed: Signed, now: float) -> None:
    off = round(signed.created - now)
    if abs(signed.created - now) > WINDOW:
        side = "ahead of" if off > 0 else "behind"
        raise invalid(f"its time is {abs(off)} s {side} the clock here, and {WINDOW} s are allowed", "clock_skew")
    if signed.expires is not None and signed.expires <= now:
        raise invalid("it has expired")


async def _whole_base(signed: Signed, body: bytes) -> bytes:
    if signed.digests is not None:
        return signed.base
    return signed.base + (await digest_of(body, "sha-256")).hex().encode()


async def _check_body(signed: Signed, body: bytes) -> None:
    for algorithm, digest in (signed.digests or {}).items():
        if not hmac.compare_digest(await digest_of(body, algorithm), digest):
            raise invalid(f"the body is not the one of which content-digest tells the {algorithm}")


def _is_by(public_key: bytes, signature: bytes, base: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, base)
    except (InvalidSignature, ValueError):
        return False
    return True
