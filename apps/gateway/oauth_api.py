"""OAuth 2.0 for programs: tokens by client credentials (RFC 6749, 4.4), introspection (RFC 7662), revocation (RFC
7009), and where all that is (RFC 8414).
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from ninja import Router

from apps.gateway.access.keys.shape import well_formed
from apps.gateway.access.oauth import forms
from apps.gateway.access.oauth.clients import asker, client
from apps.gateway.access.oauth.forms import Form, Unreadable
from apps.gateway.access.oauth.grants import GRANT, Granted, grant
from apps.gateway.access.oauth.metadata import Metadata, metadata
from apps.gateway.access.oauth.refusals import PRAGMA, Problem, Refused, in_its_form
from apps.gateway.access.tokens.own import Claims
from apps.gateway.access.visitors import anybody
from apps.gateway.requests import GatewayRequest
from citadel.answer import JSON, Answer
from citadel.caller import Caller
from citadel.description import Schema, answers, schema
from citadel.errors import NotFound, TooLarge, TooSlow
from citadel.permissions import MANAGE_KEYS, held_by, may

router = Router(tags=["OAuth 2.0"])
well_known = Router(tags=["OAuth 2.0"])


class TokenRequest(msgspec.Struct):
    """A client proves who it is by HTTP Basic, or by the last two."""

    grant_type: Annotated[str, msgspec.Meta(extra_json_schema={"enum": [GRANT]})]
    scope: str | None = None
    client_id: str | None = None
    client_secret: str | None = None


class AboutToken(msgspec.Struct):
    """Which token is meant; whoever asks proves who it is by HTTP Basic, by the last two, or as everywhere else."""

    token: str
    token_type_hint: str | None = None
    client_id: str | None = None
    client_secret: str | None = None


class Introspected(msgspec.Struct, omit_defaults=True):
    """Whether a token is good, and if so, what for and until when (RFC 7662, section 2.2)."""

    active: bool
    scope: str | None = None
    client_id: str | None = None
    sub: str | None = None
    token_type: str | None = None
    iat: int | None = None
    exp: int | None = None
    jti: str | None = None


class Done(msgspec.Struct):
    """Nothing is told."""


INACTIVE = Introspected(active=False)


def described(answer: Any, body: Any, *proofs: str) -> Schema:
    """What OpenAPI is told of such an endpoint: a form goes in, with one of these proofs or with credentials in it, and
    refusals have a form of their own, but for what is said before the form is read and by a worker that ends.
    """
    told = answers(answer, TooSlow, TooLarge)
    problem = schema(Problem)
    for status, meaning, form in (
        (400, "The request can't be granted.", problem),
        (401, "The client is not known.", problem),
        (429, "The client sends too many requests.", problem),
        (503, "Not now.", {"anyOf": [problem, {"$ref": "#/components/schemas/Error"}]}),
    ):
        told["responses"][status] = {"description": meaning, "content": {"application/json": {"schema": form}}}
    content = {forms.KIND.decode(): {"schema": schema(body)}}
    security: list[dict[str, list[str]]] = [{proof: []} for proof in proofs]
    return {**told, "requestBody": {"required": True, "content": content}, "security": security}


@router.post("/token", auth=None, openapi_extra=described(Granted, TokenRequest, "basic"))
async def issue_token(request: GatewayRequest) -> Answer:
    """A token for a client, with the permissions of its key or fewer, for `tokens.lifetime` at most."""
    form = await _form(request, client)
    caller, credentials = await client(request, form)
    runtime = request.runtime
    digest = runtime.keys.digest(credentials.client_secret.encode())
    seconds = runtime.tokens.own.lifetime(caller, runtime.config.tokens.lifetime)

    def make(scopes: list[str]) -> str:
        return runtime.tokens.own.make(digest, scopes, seconds)

    with in_its_form():
        return _answer(grant(caller, form.values, make, seconds))


@router.post("/introspect", auth=None, openapi_extra=described(Introspected, AboutToken, "basic", "bearer", "header"))
async def introspect_token(request: GatewayRequest) -> Answer:
    """Whether a token of this Citadel is good and what for, told to whom it concerns: who holds its key, who manages
    the keys of its team. To others it is none.
    """
    form = await _form(request, asker)
    by, token = await asker(request, form), _token(form)
    with in_its_form():
        found = await request.runtime.tokens.own_token(token)
    return _answer(_introspected(*found) if found and _concerns(by, found[1]) else INACTIVE)


@router.post("/revoke", auth=None, openapi_extra=described(Done, AboutToken, "basic", "bearer", "header"))
async def revoke_token(request: GatewayRequest) -> Answer:
    """Has a token refused from now on, by every worker within a second. What is no token, or none any more, is done."""
    form = await _form(request, asker)
    by, token = await asker(request, form), _token(form)
    tokens = request.runtime.tokens
    if well_formed(token) or tokens.is_trusted(token):
        message = "Only tokens of this Citadel are revoked here: keys where they are managed, others by their issuers."
        raise Refused("unsupported_token_type", message)
    with in_its_form():
        if found := await tokens.own_token(token):
            claims, holder = found
            if not _concerns(by, holder):
                raise Refused("invalid_grant", "This token was given to another client.")
            await tokens.revoked.revoke(claims, holder.key_id)
    return _answer(Done())


@well_known.get("", auth=anybody, openapi_extra={**answers(Metadata, NotFound), "security": []})
async def authorization_server(request: GatewayRequest) -> Answer:
    """Where tokens are had, introspected and revoked, and which there are."""
    return Answer(msgspec.json.encode(metadata(request)), headers=[JSON, (b"vary", b"host")])


async def _form(request: GatewayRequest, who: Callable[[GatewayRequest, Form], Awaitable[object]]) -> Form:
    """The form that a request brings. Of one that can't be read is told whose it is first, by the headers alone: who is
    not known by them learns no more than from credentials that are none.
    """
    try:
        return forms.read(request.body, request.scope["query_string"], request.raw_headers.get(b"content-type", b""))
    except Unreadable:
        await who(request, Form({}))
        raise


def _token(form: Form) -> bytes:
    token = form.values.get("token")
    if token is None:
        raise Refused("invalid_request", "Missing parameter: token.")
    return token.encode()


def _concerns(by: Caller, holder: Caller) -> bool:
    return by.key_id == holder.key_id or may(by, MANAGE_KEYS, holder.team)


def _introspected(claims: Claims, holder: Caller) -> Introspected:
    return Introspected(
        active=True,
        scope=" ".join(sorted(held_by(holder))) or None,
        client_id=holder.key_id,
        sub=holder.key_id,
        token_type="Bearer",  # noqa: S106  # no secret
        iat=int(claims.iat),
        exp=int(min(claims.exp, holder.expires or claims.exp)),
        jti=claims.jti,
    )


def _answer(told: msgspec.Struct) -> Answer:
    return Answer(msgspec.json.encode(told), headers=[JSON, PRAGMA])
