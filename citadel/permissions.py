"""Who may do what: the one decision. Pure; the default is no."""

from collections.abc import Mapping
from types import MappingProxyType

from citadel.caller import STRANGER, Caller
from citadel.errors import Forbidden, Unauthenticated

USE_MODELS = "models.use"
SEE_METRICS = "metrics.see"
SEE_FLEET = "fleet.see"
"""Servers, how they are, events, statistics, the details of health pages."""
REGISTER_SERVERS = "fleet.register"
"""Register servers, send their heartbeats and take one's own out."""
OPERATE_FLEET = "fleet.operate"
"""Drain, enable, disable, fail over, approve, take any server out."""
OWN_FLEET = "fleet.own"
"""Take over what another credential registered."""

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "admin": frozenset({USE_MODELS, SEE_METRICS, SEE_FLEET, REGISTER_SERVERS, OPERATE_FLEET, OWN_FLEET}),
        "operator": frozenset({USE_MODELS, SEE_METRICS, SEE_FLEET, REGISTER_SERVERS, OPERATE_FLEET}),
        "server": frozenset({REGISTER_SERVERS}),  # what a machine of the fleet, or its agent, holds
        "auditor": frozenset({SEE_METRICS, SEE_FLEET}),
        "developer": frozenset({USE_MODELS}),
        "scraper": frozenset({SEE_METRICS, SEE_FLEET}),  # what asks from one of security.metrics_networks
    }
)


def may(caller: Caller, permission: str) -> bool:
    """Whether `caller` has `permission`."""
    return permission in ROLES.get(caller.role, frozenset())


def require(caller: Caller, permission: str) -> None:
    """Forbidden unless `caller` has `permission`; Unauthenticated where nobody has proved to be anybody."""
    if caller is STRANGER:
        raise Unauthenticated("This needs a valid API key: send Authorization: Bearer KEY.")
    if not may(caller, permission):
        raise Forbidden(f"This needs the permission '{permission}', which the role '{caller.role}' does not have.")
