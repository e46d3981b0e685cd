"""Who may do what: the one decision. Pure; the default is no."""

from collections.abc import Mapping
from types import MappingProxyType

from citadel.caller import Caller
from citadel.errors import Forbidden

USE_MODELS = "models.use"
SEE_METRICS = "metrics.see"

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "admin": frozenset({USE_MODELS, SEE_METRICS}),
        "operator": frozenset({USE_MODELS, SEE_METRICS}),
        "auditor": frozenset({SEE_METRICS}),
        "developer": frozenset({USE_MODELS}),
    }
)


def may(caller: Caller, permission: str) -> bool:
    """Whether `caller` has `permission`."""
    return permission in ROLES.get(caller.role, frozenset())


def require(caller: Caller, permission: str) -> None:
    """Forbidden unless `caller` has `permission`."""
    if not may(caller, permission):
        raise Forbidden(f"This needs the permission '{permission}', which the role '{caller.role}' does not have.")
