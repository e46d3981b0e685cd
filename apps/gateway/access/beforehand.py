"""What is worth keeping of a request's body before it is whole, by what its head tells of who asks."""

from collections.abc import Mapping

from apps.gateway.access.bearer import carries_credential, credential
from apps.gateway.access.keys.shape import well_formed
from apps.gateway.access.oauth.metadata import ENDPOINTS
from apps.gateway.access.signatures.verifier import is_signed
from apps.gateway.runtime import Runtime
from citadel.body import ALL, HALF, NOTHING, Scope
from citadel.errors import Unauthenticated

PROVEN_BY_BODIES = ("/webhooks", *ENDPOINTS)
"""Where a proof may stand in the body, or be over it, without a key."""


def room_for(scope: Scope, headers: Mapping[bytes, bytes], runtime: Runtime) -> float:
    """The part of the room for bodies: all for the holder of a key, half for who may prove to be somebody, nothing for
    who will be refused whatever the body says.
    """
    if carries_credential(headers):
        part = _by_credential(headers, runtime)
    else:
        part = HALF if is_signed(headers) or runtime.certificates.presented(scope, headers) else NOTHING
    return part or (HALF if scope["path"].startswith(PROVEN_BY_BODIES) else NOTHING)


def _by_credential(headers: Mapping[bytes, bytes], runtime: Runtime) -> float:
    try:
        key = credential(headers)
        if runtime.keys.find(key):
            return ALL
    except Unauthenticated:
        return NOTHING
    return HALF if b"." in key or well_formed(key) else NOTHING
