"""The caller of a request on the lean path, by the credential in its headers."""

from apps.gateway.requests import GatewayRequest
from citadel.caller import Caller
from citadel.errors import Unauthenticated

MISSING = "No API key was given: send Authorization: Bearer KEY, or x-api-key: KEY."


async def authenticate(request: GatewayRequest) -> Caller:
    """Who asks; Unauthenticated where nobody proves to be anybody."""
    headers = request.raw_headers
    credential = headers.get(b"authorization")
    if credential is not None:
        scheme, _, key = credential.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated(MISSING)
        return await request.runtime.keys.authenticate(key.strip())
    key = headers.get(b"x-api-key", b"")
    if not key:
        raise Unauthenticated(MISSING)
    return await request.runtime.keys.authenticate(key)
