"""Tokens of trusted issuers, and what they make of their holders here."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jwt

from apps.gateway.access.claims import claim_of, role_of
from apps.gateway.access.tokens.heads import Head, invalid
from apps.gateway.access.tokens.key_sets import KeySet
from apps.gateway.limits.waiting import PRIORITIES
from citadel.caller import LAST_MOMENT, Caller, Limits
from citadel.errors import Forbidden
from citadel.sections import Config, IssuerSection

LONGEST_NAME = 128
ACCESS_TOKEN = "at+jwt"  # noqa: S105  # a kind of tokens
KINDS = ("", "jwt", ACCESS_TOKEN)
"""What the head of an access token may say: RFC 9068's word for it, or nothing that tells one from others."""
MARKS = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})
"""Claims of ID tokens (OpenID Connect Core 1.0, 2 and 3.3.2.11) and of those about the end of a session."""
FOR_ACCESS = "Bearer"
"""What Keycloak calls access tokens in a claim `typ`; until its version 25 they had the nonce of the ID token too."""
OTHERS = ("ID", "Refresh", "Offline", "Logout")
"""What it calls its others there."""
KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Of keys (RFC 7518, 6.1), by how the names of the algorithms begin that they are for."""
MOST_TRIED = 8
"""Keys of an issuer by which a token may be signed that names none."""
MOMENTS = ("exp", "nbf", "iat")
WRONG = "its signature or its claims are wrong"
NO_ROLE = "You are known to the token's issuer, but have no role here: an administrator gives it."
_TEAM = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Issuer:
    """Somebody whose tokens for one audience are taken."""

    def __init__(self, section: IssuerSection, config: Config, keys: KeySet):
        self._section = section
        client = config.limits.client
        self._limits = Limits(client.requests_per_minute, client.tokens_per_minute, client.concurrent)
        self._leeway = config.tokens.leeway
        self._keys = keys

    @property
    def audience(self) -> str:
        """Whom its tokens must be meant for."""
        return self._section.audience

    @property
    def until(self) -> float:
        """Until when a verdict of now holds, by the monotonic clock."""
        return self._keys.until

    async def caller(self, token: bytes, head: Head) -> Caller:
        """Who holds a token; Unauthenticated, Forbidden where nothing makes that a role here, or Unavailable while the
        issuer's keys can't be had.
        """
        if head.alg not in self._section.algorithms:
            raise invalid("it is signed by an algorithm that is not taken from its issuer")
        if head.kind not in KINDS or (self._section.typed and head.kind != ACCESS_TOKEN):
            raise invalid("its head does not say that it is an access token")
        kind = KEY_TYPES[head.alg[:2]]
        keys = [key for key in await self._keys.find(head.kid) if key.key_type == kind][:MOST_TRIED]
        if not keys:
            raise invalid("its issuer has no such key")
        claims = next((claims for key in keys if (claims := self._verified(token, head.alg, key)) is not None), None)
        if claims is None:
            raise invalid(WRONG)
        if head.kind != ACCESS_TOKEN and not _are_for_access(claims):
            raise invalid("it is an ID token, or another that is none for access: send the access token")
        return self._holder(claims)

    def _verified(self, token: bytes, algorithm: str, key: jwt.PyJWK) -> Mapping[str, Any] | None:
        """Its claims; None where it is not signed by that key. `algorithm` is one of those that are configured, and
        must be one for the key.
        """
        try:
            claims = jwt.decode(
                token,
                key.key,
                [algorithm],
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
                audience=self._section.audience,
                issuer=self._section.issuer,
                leeway=self._leeway,
            )
            _check_kinds(claims)
            return {**claims, "exp": float(claims["exp"])}
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):  # the latter where it is of another curve
            return None
        except jwt.ExpiredSignatureError:
            raise invalid("it has expired") from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise invalid("it is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise invalid("it is meant for somebody else") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError):
            raise invalid(WRONG) from None

    def _holder(self, claims: Mapping[str, Any]) -> Caller:
        subject: str = claims["sub"]
        identity = hashlib.blake2b(f"{self._section.issuer}\0{subject}".encode(), digest_size=12).hexdigest()
        team, role = self._team(claims), role_of(claims, self._section)
        if role is None:
            raise Forbidden(NO_ROLE, code="no_role", whose=f"token-{identity}")
        return Caller(
            key_id=f"token-{identity}",
            name=subject[:LONGEST_NAME],
            team=team,
            role=role,
            models=None,
            limits=self._limits,
            expires=claims["exp"] + self._leeway,
            max_priority=PRIORITIES["high"],
        )

    def _team(self, claims: Mapping[str, Any]) -> str:
        claim = self._section.team_claim
        team = self._section.team if claim is None else claim_of(claims, claim)
        if not isinstance(team, str) or not _TEAM.fullmatch(team):
            raise invalid(f"its claim '{claim}' names no team")
        return team


def _check_kinds(claims: Mapping[str, Any]) -> None:
    """ValueError where a claim is not what it must be (RFC 7519, 4.1), which PyJWT takes for it."""
    if not claims["sub"].encode():
        raise ValueError("the subject is empty")
    for name in MOMENTS:
        moment = claims.get(name, 0)
        if isinstance(moment, bool) or not isinstance(moment, int | float) or moment > LAST_MOMENT:
            raise ValueError(f"'{name}' is no moment")


def _are_for_access(claims: Mapping[str, Any]) -> bool:
    """Whether claims are those of an access token, as far as they tell."""
    kind = claims.get("typ")
    return kind == FOR_ACCESS or (kind not in OTHERS and MARKS.isdisjoint(claims))
