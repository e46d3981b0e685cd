"""Who may do what: the one decision. Pure; the default is no."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType

from citadel.caller import STRANGER, Caller, Limits, Network
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
SEE_KEYS = "keys.see"
"""Teams and their keys, never what opens a door."""
MANAGE_KEYS = "keys.manage"
"""Make, change, rotate and revoke keys that may no more than one's own."""
MANAGE_TEAMS = "teams.manage"
"""Make and change teams, and keys of any team with any models, limits and priority."""
SEE_AUDIT = "audit.see"
"""Who asked what, and what became of it."""

PERMISSIONS = frozenset(
    {
        USE_MODELS,
        SEE_METRICS,
        SEE_FLEET,
        REGISTER_SERVERS,
        OPERATE_FLEET,
        OWN_FLEET,
        SEE_KEYS,
        MANAGE_KEYS,
        MANAGE_TEAMS,
        SEE_AUDIT,
    }
)

OF_SERVERS = frozenset({REGISTER_SERVERS, OPERATE_FLEET, OWN_FLEET})
"""Permissions that a caller may have of some servers alone."""

ROLES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "admin": PERMISSIONS,
        "operator": frozenset({USE_MODELS, SEE_METRICS, SEE_FLEET, REGISTER_SERVERS, OPERATE_FLEET, SEE_KEYS}),
        "server": frozenset({REGISTER_SERVERS}),  # what a machine of the fleet, or its agent, holds
        "auditor": frozenset({SEE_METRICS, SEE_FLEET, SEE_KEYS, SEE_AUDIT}),
        "developer": frozenset({USE_MODELS}),
        "owner": frozenset({USE_MODELS}),
        "member": frozenset({USE_MODELS}),
        "viewer": frozenset(),
        "scraper": frozenset({SEE_METRICS, SEE_FLEET}),  # what asks from one of security.metrics_networks
    }
)
"""What each role may, wherever it is."""

IN_OWN_TEAM: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "owner": frozenset({SEE_KEYS, MANAGE_KEYS}),
        "member": frozenset({SEE_KEYS}),
        "viewer": frozenset({SEE_KEYS}),
    }
)
"""What else a role may with what belongs to a team of the caller's own."""
_OF_TEAMS = frozenset[str]().union(*IN_OWN_TEAM.values())


LIMITS = {
    "requests": "limits.requests_per_minute",
    "tokens": "limits.tokens_per_minute",
    "concurrent": "limits.concurrent",
}
"""A caller's limits, as the fields of a key are called that set them."""


def may(caller: Caller, permission: str, team: str | None = None, *, server: str | None = None) -> bool:
    """Whether `caller` has `permission`: of what belongs to `team`, of `server`, where one is named, or of all."""
    if caller.servers is not None and permission in OF_SERVERS and server not in caller.servers:
        return False
    return _has(caller, permission, team)


def _has(caller: Caller, permission: str, team: str | None) -> bool:
    """The same, be it of some servers alone."""
    if caller.scopes is not None and permission not in caller.scopes:
        return False
    if permission in ROLES.get(caller.role, _NOTHING):
        return True
    if team is None or permission not in _OF_TEAMS:
        return False
    return any(permission in IN_OWN_TEAM.get(role, _NOTHING) for role in caller.roles_in(team))


def require(caller: Caller, permission: str, *, server: str | None = None) -> None:
    """Forbidden unless `caller` has `permission`, of `server` where one is named, or of all; Unauthenticated where
    nobody has proved to be anybody.
    """
    _require(caller, permission, None)
    if not may(caller, permission, server=server):
        whose = f"for the server '{server[:64]}'" if server else "for all servers"
        raise Forbidden(f"This needs the permission '{permission}' {whose}, and this key has it for others alone.")


def require_somewhere(caller: Caller, permission: str) -> None:
    """The same for what may be allowed in the caller's own team, or of its own servers, alone."""
    _require(caller, permission, caller.team)


def may_somewhere(caller: Caller, permission: str) -> bool:
    """Whether `caller` has `permission` at all: anywhere, in the own team, or of its own servers alone."""
    return _has(caller, permission, caller.team)


def held_by(caller: Caller) -> frozenset[str]:
    """All permissions of a caller, wherever they hold: anywhere, or in its own team alone."""
    return _all(caller, caller.team)


def outranks(caller: Caller, other: Caller) -> bool:
    """Whether `other` has no permission that `caller` lacks; in the same team, unless `caller` manages teams."""
    return not any(_above(other, caller))


def beyond(granted: Caller, giver: Caller) -> Iterator[str]:
    """The fields of a key by which `granted` may what `giver` may not, or from elsewhere, or for longer.

    What a person may as a member of a team ends with that, and is given to no key, which would outlast it. Who manages
    teams gives models, limits, budgets and priorities as it thinks right.
    """
    yield from _above(granted, giver, replace(giver, memberships=frozenset()))
    if not _asks_from_within(granted, giver):
        yield "addresses"
    if giver.expires is not None and (granted.expires is None or granted.expires > giver.expires):
        yield "expires"
    if not may(giver, MANAGE_TEAMS):
        yield from _uses_beyond(granted, giver)
    if not spends_within(granted, giver):
        yield "budgets"


def spends_within(granted: Caller, giver: Caller) -> bool:
    """Whether `granted` has each of the budgets that `giver` has for itself, and none is larger.

    Those of teams bound both already; who manages teams gives what it thinks right.
    """
    own = {budget.period: budget for budget in granted.budgets if budget.holder == granted.key_id}
    return may(giver, MANAGE_TEAMS) or all(
        (bound := own.get(budget.period)) is not None
        and _bounded(bound.tokens, budget.tokens)
        and _bounded(bound.money, budget.money)
        for budget in giver.budgets
        if budget.holder == giver.key_id
    )


def _above(other: Caller, caller: Caller, giver: Caller | None = None) -> Iterator[str]:
    """The fields by which `other` has a permission that `caller` lacks, or `giver` in the team of `other`."""
    if other.team not in caller.teams and not may(caller, MANAGE_TEAMS):
        yield "team"
    everywhere, there = _all(other, None), _all(other, other.team)
    if not (everywhere <= _all(caller, None) and there <= _all(giver or caller, other.team)):
        yield "role and scopes"
    if OF_SERVERS & there and not _named_within(other.servers, caller.servers):
        yield "servers"


def _uses_beyond(granted: Caller, giver: Caller) -> Iterator[str]:
    if not _named_within(granted.models, giver.models):
        yield "models"
    for name in Limits._fields:
        lifts = name in granted.own_limits - giver.own_limits
        if lifts or not _at_most(getattr(granted.limits, name), getattr(giver.limits, name)):
            yield LIMITS[name]
    if granted.max_priority > giver.max_priority:
        yield "max_priority"


def _named_within(names: frozenset[str] | None, others: frozenset[str] | None) -> bool:
    """Whether what is named lies within what is named of others; None is all."""
    return others is None or (names is not None and names <= others)


def _require(caller: Caller, permission: str, team: str | None) -> None:
    if caller is STRANGER:
        raise Unauthenticated("This needs a valid API key: send Authorization: Bearer KEY.")
    if _has(caller, permission, team):
        return
    if caller.scopes is not None and permission not in caller.scopes:
        lacks = "is not among the scopes of this key"
    else:
        lacks = f"the role '{caller.role}' does not have"
    raise Forbidden(f"This needs the permission '{permission}', which {lacks}.", whose=caller.key_id or caller.name)


def _all(caller: Caller, team: str | None) -> frozenset[str]:
    """Everything that a caller may, anywhere or in a team."""
    return frozenset(permission for permission in PERMISSIONS if _has(caller, permission, team))


def _at_most(limit: int, most: int) -> bool:
    """Whether a limit lies within another; 0 is none."""
    return not most or 0 < limit <= most


def _bounded(amount: int | None, most: int | None) -> bool:
    """Whether what may be spent lies within another bound; None is none, and 0 is nothing at all."""
    return most is None or (amount is not None and amount <= most)


def _asks_from_within(granted: Caller, giver: Caller) -> bool:
    if giver.addresses is None:
        return True
    return granted.addresses is not None and all(
        any(_lies_in(network, whole) for whole in giver.addresses) for network in granted.addresses
    )


def _lies_in(network: Network, whole: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(whole, IPv4Network) and network.subnet_of(whole)
    return isinstance(whole, IPv6Network) and network.subnet_of(whole)


_NOTHING: frozenset[str] = frozenset()
