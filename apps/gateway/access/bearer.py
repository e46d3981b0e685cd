"""The caller of a request on the lean path, by the credential in its headers."""

from collections.abc import Mapping

from apps.gateway.requests import GatewayRequest
from citadel.caller import Caller
from citadel.errors import Unauthenticated

MISSING = "No API key was given: send Authorization: Bearer KEY, or x-api-key: KEY."
WITHOUT_SCHEME = "The word Bearer is missing before the key: send Authorization: Bearer KEY."


async def authenticate(request: GatewayRequest) -> Caller:
    """Who asks; Unauthenticated where nobody proves to be anybody."""
    key, keys = credential(request.raw_headers), request.runtime.keys
    return keys.find(key) or await keys.look_up(key)


def credential(headers: Mapping[bytes, bytes]) -> bytes:
    """The key that a request carries; Unauthenticated where it carries none."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthenticated(MISSING if key or not scheme else WITHOUT_SCHEME)
        return key.strip()
    key = headers.get(b"x-api-key", b"")
    if not key:
        raise Unauthenticated(MISSING)
    return key
