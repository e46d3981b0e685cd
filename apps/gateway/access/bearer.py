"""The caller of a request by the key or token in its headers."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from apps.gateway.runtime import Runtime
from citadel.caller import Caller
from citadel.errors import Forbidden, Unauthenticated

MISSING = "No API key was given: send Authorization: Bearer KEY, or x-api-key: KEY."
WITHOUT_SCHEME = "The word Bearer is missing before the key: send Authorization: Bearer KEY."
ELSEWHERE = "This API key may not be used from your address."


def carries_credential(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request has a header that is for a key or a token."""
    return b"authorization" in headers or b"x-api-key" in headers


async def bearer_of(headers: Mapping[bytes, bytes], runtime: Runtime) -> Caller:
    """Who holds the key or token that a request carries; Unauthenticated, or Unavailable while that can't be known."""
    key = credential(headers)
    return runtime.keys.find(key) or await prove(key, runtime)


async def prove(credential: bytes, runtime: Runtime) -> Caller:
    """Who brings a credential that isn't a key in this worker's table: a token, or a key made a moment ago."""
    if b"." in credential:
        return await runtime.tokens.caller(credential)
    return await runtime.keys.look_up(credential)


def receive(caller: Caller, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes], runtime: Runtime) -> None:
    """Notes that a key is used; Forbidden where it may not be used from there."""
    if caller.addresses is not None:
        address = runtime.proxies.client(scope, headers)
        if address is None or not caller.may_ask_from(address):
            raise Forbidden(ELSEWHERE, code="address_not_allowed", whose=caller.key_id)
    runtime.key_uses.note(caller.key_id)


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
