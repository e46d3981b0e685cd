"""Who asks on the lean path, by whichever way of proving it the request brings; of several the first below counts."""

from apps.gateway.access.bearer import MISSING, bearer_of, carries_credential, receive
from apps.gateway.access.certificates.presented import is_a_browsers
from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.access.signatures.verifier import is_signed
from apps.gateway.requests import GatewayRequest
from apps.orchestration.servers_api import is_of_server
from citadel.caller import Caller
from citadel.errors import Unauthenticated
from citadel.permissions import REGISTER_SERVERS, may_somewhere


async def authenticate(request: GatewayRequest) -> Caller:
    """Who asks; Unauthenticated where nobody proves to be anybody, Forbidden from where the key may not be used,
    LimitExceeded where it signs too much.
    """
    caller, nonce = await recognize(request)
    if nonce:
        await request.runtime.signatures.use_up(nonce)
    return caller


async def recognize(request: GatewayRequest) -> tuple[Caller, Nonce | None]:
    """The same for who lets the request in in a call to Redis, which takes along the nonce of one that is signed."""
    headers, runtime, nonce = request.raw_headers, request.runtime, None
    if carries_credential(headers):
        caller = await bearer_of(headers, runtime)
    elif is_signed(headers):
        (caller, *_), nonce = await runtime.signatures.verify(request.scope, headers, request.body)
    elif certificate := runtime.certificates.presented(request.scope, headers):
        caller = await runtime.certificates.caller(certificate, headers)
    else:
        raise Unauthenticated(MISSING)
    receive(caller, request.scope, headers, runtime)
    return caller, nonce


def brings_proof(request: GatewayRequest) -> bool:
    """Whether a request brings any of these, good or not. A certificate that a browser shows goes for none."""
    headers, certificates = request.raw_headers, request.runtime.certificates
    if carries_credential(headers) or is_signed(headers):
        return True
    return certificates.presented(request.scope, headers) is not None and not is_a_browsers(headers)


async def guarded(request: GatewayRequest) -> Caller:
    """The same where no limit counts the request but the one against floods; Refused beyond that.

    Servers of a fleet may share a key, and come and go all at once: what they say by one that may register them has a
    larger bound.
    """
    caller = await authenticate(request)
    if _is_of_fleet(request, caller):
        request.runtime.floods.check_fleet(caller.key_id)
    else:
        await request.runtime.floods.check(caller.key_id)
    return caller


async def count_refused(request: GatewayRequest) -> None:
    """Counts as all else what a server was refused that `guarded` has let in by the larger bound; Refused."""
    caller = getattr(request, "auth", None)
    if caller and _is_of_fleet(request, caller):
        await request.runtime.floods.check(caller.key_id)


def _is_of_fleet(request: GatewayRequest, caller: Caller) -> bool:
    return is_of_server(request.method, request.path) and may_somewhere(caller, REGISTER_SERVERS)
