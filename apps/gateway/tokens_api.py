"""`/api/v1/auth/token`: a token for a while instead of the key."""

from typing import Annotated

import msgspec
from ninja import Router

from apps.gateway.access.bearer import carries_credential, credential
from apps.gateway.access.keys.shape import well_formed
from apps.gateway.requests import GatewayRequest
from citadel.answer import Answer, json_answer
from citadel.decoding import NOT_EMPTY, check_restrictions, decode
from citadel.description import answers
from citadel.errors import BadRequest, Forbidden
from citadel.permissions import PERMISSIONS, held_by

router = Router(tags=["Tokens"])

Seconds = Annotated[int, msgspec.Meta(ge=1, le=86400)]
Scope = Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted(PERMISSIONS)})]
Scopes = Annotated[list[Scope], msgspec.Meta(extra_json_schema=NOT_EMPTY)]


class Lending(msgspec.Struct, forbid_unknown_fields=True):
    """For how many seconds a token is to be good, which is cut to `tokens.lifetime`, and is that unless said; and the
    permissions of the key that it is to have: all unless said, or null.
    """

    expires_in: Seconds | None = None
    scopes: Scopes | None = None


class Token(msgspec.Struct):
    """A token, to be sent like a key; in the words of OAuth 2.0 (RFC 6749, 5.1)."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str | None


@router.post("/token", openapi_extra=answers(Token, BadRequest, Forbidden, body=Lending, required=False))
async def lend_token(request: GatewayRequest) -> Answer:
    """A token for who has a key: good for a while, and no longer than the key itself."""
    asked, runtime = decode(request.body, Lending), request.runtime
    key = credential(request.raw_headers) if carries_credential(request.raw_headers) else b""
    if not well_formed(key):
        raise Forbidden("A token is given for an API key alone, which the request must carry.", code="key_needed")
    check_restrictions(asked, "scopes")
    _check_scopes(asked.scopes, held_by(request.auth))
    most = runtime.config.tokens.lifetime
    seconds = runtime.tokens.own.lifetime(request.auth, min(asked.expires_in or most, most))
    token = runtime.tokens.own.make(runtime.keys.digest(key), asked.scopes, seconds)
    scope = None if asked.scopes is None else " ".join(sorted(set(asked.scopes)))
    return json_answer(Token(token, "Bearer", seconds, scope))


def _check_scopes(scopes: list[str] | None, held: frozenset[str]) -> None:
    """BadRequest, as OAuth names it (RFC 6749, 5.2), where a key would lend what it doesn't have."""
    if beyond := set(scopes or ()) - held:
        has = ", ".join(sorted(held)) or "none"
        message = f"'{min(beyond)[:64]}' is no permission that this key has, which are: {has}."
        raise BadRequest(message, code="invalid_scope", param="scopes")
