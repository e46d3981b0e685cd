"""Who asks an endpoint of OAuth 2.0: a client by its id and secret, or whoever else proves to hold a key or token."""

import hmac

from apps.gateway.access.authentication import authenticate, brings_proof
from apps.gateway.access.bearer import receive
from apps.gateway.access.oauth.forms import Credentials, Form
from apps.gateway.access.oauth.refusals import BEARER, in_its_form
from apps.gateway.requests import GatewayRequest
from citadel.caller import Caller
from citadel.errors import Unauthenticated

UNKNOWN = "The client is not known by this id and secret: they are the id of an API key and the key itself."


async def client(request: GatewayRequest, form: Form) -> tuple[Caller, Credentials]:
    """The client that asks, by `client_secret_basic` or `client_secret_post` (RFC 6749, 2.3.1); Refused."""
    with in_its_form():
        found = form.credentials(request.raw_headers.get(b"authorization"))
        if found is None:
            raise Unauthenticated(UNKNOWN)
        return await _holder(request, found), found


async def asker(request: GatewayRequest, form: Form) -> Caller:
    """The same, or who proves who it is as for any other endpoint (RFC 7662, 2.1)."""
    found = form.credentials(request.raw_headers.get(b"authorization"))
    if found is None and brings_proof(request):
        with in_its_form(BEARER):
            caller = await authenticate(request)
            await request.runtime.floods.check(caller.key_id)
            return caller
    return (await client(request, form))[0]


async def _holder(request: GatewayRequest, credentials: Credentials) -> Caller:
    runtime, key = request.runtime, credentials.client_secret.encode()
    try:
        caller = runtime.keys.find(key) or await runtime.keys.look_up(key)
    except Unauthenticated:
        raise Unauthenticated(UNKNOWN) from None
    if not hmac.compare_digest(caller.key_id.encode(), credentials.client_id.encode()):
        raise Unauthenticated(UNKNOWN)
    receive(caller, request.scope, request.raw_headers, runtime)
    await runtime.floods.check(caller.key_id)
    return caller
