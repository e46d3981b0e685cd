"""What this authorization server says of itself (RFC 8414)."""

import msgspec
from django.conf import settings
from django.http.request import split_domain_port, validate_host

from apps.gateway.access.oauth.grants import GRANT, PATH
from apps.gateway.requests import GatewayRequest
from citadel.errors import NotFound
from citadel.origin import origin_of
from citadel.permissions import PERMISSIONS

WELL_KNOWN = "/.well-known/oauth-authorization-server"
INTROSPECTION, REVOCATION = "/api/v1/oauth/introspect", "/api/v1/oauth/revoke"
ENDPOINTS = frozenset({PATH, INTROSPECTION, REVOCATION})
"""Which take forms, and no JSON."""
METHODS = ["client_secret_basic", "client_secret_post"]


class Metadata(msgspec.Struct):
    """Where everything is and what can be had (RFC 8414, section 2)."""

    issuer: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    scopes_supported: list[str]
    grant_types_supported: list[str]
    response_types_supported: list[str]
    """Of an authorization endpoint, which is not here. It must be told, and no empty list may be (section 3.2): so it
    is the type that gives nothing out.
    """
    token_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]


def metadata(request: GatewayRequest) -> Metadata:
    """For who asks at this address; NotFound under a name that is not one of ours."""
    issuer = _issuer(request)
    return Metadata(
        issuer,
        issuer + PATH,
        issuer + INTROSPECTION,
        issuer + REVOCATION,
        sorted(PERMISSIONS),
        [GRANT],
        ["none"],
        METHODS,
        [*METHODS, "Bearer"],
        METHODS,
    )


def _issuer(request: GatewayRequest) -> str:
    """The operator's word, else the address by which the client has found us."""
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL)
    own = origin_of(request.scope["scheme"], request.raw_headers.get(b"host", b""), None)
    domain = split_domain_port(own.host)[0]
    if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
        raise NotFound("There is no authorization server under this name.")
    return str(own)
