"""Who holds a token: ours or a trusted issuer's, verified once and then known by its digest until it ends."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace

from apps.gateway.access.keys.table import KeyTable
from apps.gateway.access.tokens import own
from apps.gateway.access.tokens.heads import Claimed, claimed_of, head_of, invalid
from apps.gateway.access.tokens.issuers import Issuer
from apps.gateway.access.tokens.key_sets import KeySet
from apps.gateway.access.tokens.own import Claims, OwnTokens
from apps.gateway.access.tokens.revoked import RevokedTokens
from citadel.caller import Caller
from citadel.errors import Unauthenticated
from citadel.redis import Redis
from citadel.sections import Config

MOST_KNOWN = 10_000
"""Tokens that a worker knows at once, without verifying them again."""

UNKNOWN: tuple[float, None] = (0.0, None)


class Verifier:
    """This worker's view of tokens. Our own end by `clock`, which all workers have in common."""

    def __init__(
        self, config: Config, keys: KeyTable, redis: Redis, revoked: RevokedTokens, clock: Callable[[], float]
    ):
        self.own = OwnTokens(config.secret, clock)
        self.revoked = revoked
        self._keys = keys
        self._issuers = _issuers(config, redis)
        self._known: dict[bytes, tuple[float, Caller | Claims]] = {}
        """By the digest of the whole token: until when its verdict holds, and what that is."""

    async def caller(self, token: bytes) -> Caller:
        """Who holds it; Unauthenticated, Forbidden where that is nobody here, Unavailable while it can't be known."""
        digest = hashlib.blake2b(token, digest_size=32).digest()
        until, known = self._known.get(digest, UNKNOWN)
        if known is None or until <= time.monotonic():
            known = await self._verify(token, digest)
        if isinstance(known, Claims):
            return await self._holder(known)
        if known.expires is not None and known.expires <= time.time():
            raise invalid("it has expired")
        return self._in_team(known, digest)

    def _in_team(self, known: Caller, digest: bytes) -> Caller:
        """The same with what holds for its team now. It is another caller only where that is another."""
        bounds = self._keys.bounds_of(known.team)
        if (known.team_limits, known.budgets) != bounds:
            known = replace(known, team_limits=bounds.limits, budgets=bounds.budgets)
            if digest in self._known:
                self._known[digest] = (self._known[digest][0], known)
        return known

    async def own_token(self, token: bytes) -> tuple[Claims, Caller] | None:
        """What a token of ours says, and who holds it; None where it is none that is good. Unavailable as above."""
        try:
            head_of(token)
            claims = self.own.read(token)
            return claims, await self._holder(claims)
        except Unauthenticated:
            return None

    def is_trusted(self, token: bytes) -> bool:
        """Whether a token says that it is of one of the trusted issuers."""
        try:
            return claimed_of(token).iss in self._issuers
        except Unauthenticated:
            return False

    async def _verify(self, token: bytes, digest: bytes) -> Caller | Claims:
        head, claimed = head_of(token), claimed_of(token)
        found: Caller | Claims
        if claimed.iss == own.ISSUER:
            until, found = math.inf, self.own.read(token)
        else:
            issuer = self._issuer(claimed)
            found = await issuer.caller(token, head)
            until = issuer.until
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[digest] = (until, found)
        return found

    def _issuer(self, claimed: Claimed) -> Issuer:
        """By which entry a token is to be verified; any where it is for none of them, which then says so."""
        entries = self._issuers.get(claimed.iss)
        if not entries:
            raise invalid("its issuer is not trusted here")
        return next((entry for entry in entries if claimed.is_for(entry.audience)), entries[0])

    async def _holder(self, claims: Claims) -> Caller:
        """The holder of the key that gave a token of ours out, for as long as that key is good itself."""
        self.own.check_end(claims)
        if claims.jti in self.revoked:
            raise invalid("it was revoked")
        holder = await self._keys.of(claims.digest)
        return holder.lent(claims.scopes, claims.exp)


def _issuers(config: Config, redis: Redis) -> dict[str, list[Issuer]]:
    """The entries of each issuer; those whose keys are in the same place ask for them together."""
    key_sets: dict[tuple[str, str | None], KeySet] = {}
    issuers: dict[str, list[Issuer]] = {}
    for section in config.tokens.issuers:
        place = (section.issuer, section.jwks_url)
        keys = key_sets[place] = key_sets.get(place) or KeySet(section, config, redis)
        issuers.setdefault(section.issuer, []).append(Issuer(section, config, keys))
    return issuers
