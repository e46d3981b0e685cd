"""Who asks where strangers may ask too: who holds a key, who comes from a network that may see, or nobody known."""

from collections.abc import Awaitable, Callable
from functools import cache

from apps.gateway.access import refusals
from apps.gateway.access.authentication import authenticate, brings_proof, guarded
from apps.gateway.access.bearer import carries_credential
from apps.gateway.requests import GatewayRequest
from apps.orchestration.webhooks.credentials import NEEDED, offers_proof
from citadel.addresses import Addresses
from citadel.caller import STRANGER, Caller
from citadel.client_address import is_within
from citadel.errors import Forbidden, Unauthenticated, Unavailable

PROBED = ("/health", "/ready")
"""How the addresses of those health pages end that load balancers ask, as often as they like: they cost little."""
SCRAPER = Caller("", "scraper", "", "scraper", frozenset())


async def visitor(request: GatewayRequest) -> Caller:
    """Who asks for a page that answers anybody; a key that proves nothing, or can't be checked now, is none. Refused
    for who asks too often, by a key or as a stranger from one address, but for what is probed.
    """
    is_probed = request.path.rstrip("/").endswith(PROBED)
    try:
        return await scraper(request, authenticate if is_probed else guarded)
    except (Unauthenticated, Forbidden, Unavailable) as error:
        if carries_credential(request.raw_headers):
            refusals.tell(request.runtime, request.scope, request.raw_headers, error)
        return STRANGER if is_probed else await anybody(request)


async def anybody(request: GatewayRequest) -> Caller:
    """Nobody in particular, where all are answered alike; Refused where too many come from one address."""
    address = request.runtime.proxies.client(request.scope, request.raw_headers)
    await request.runtime.floods.check_stranger(address)
    return STRANGER


async def scraper(request: GatewayRequest, known: Callable[[GatewayRequest], Awaitable[Caller]] = guarded) -> Caller:
    """Who asks for what one of `security.metrics_networks` sees without a key; who brings a proof, or comes from
    elsewhere, is who is `known`; raises as that.
    """
    if not brings_proof(request) and _comes_from(request, request.runtime.config.security.metrics_networks):
        return SCRAPER
    return await known(request)


async def sender(request: GatewayRequest) -> Caller:
    """Who sends a webhook, as far as a key of ours tells: it may bring a proof of its own instead, for which something
    is looked up. Unauthenticated where it brings none, Refused where too many come by one key or from one address.
    """
    try:
        return await guarded(request)
    except Unauthenticated:
        if request.method == "GET":  # who only looks at them sends none
            raise
    if not offers_proof(request.raw_headers):
        raise Unauthenticated(NEEDED)
    return await anybody(request)


def _comes_from(request: GatewayRequest, networks: tuple[str, ...]) -> bool:
    if not networks:
        return False
    address = request.runtime.proxies.client(request.scope, request.raw_headers)
    return address is not None and is_within(_rule(networks), address)


@cache
def _rule(networks: tuple[str, ...]) -> Addresses:
    return Addresses(networks)
