"""What people may with servers: all of what their role says, or with those alone that they are assigned to.

Django asks its backend for each permission, of an object where it is about one.
"""

from typing import Any

from django.contrib.auth.backends import ModelBackend

from apps.gateway.access.console.roles import IN_DJANGO
from apps.gateway.models import Assignment
from citadel.permissions import OF_SERVERS

OF_ONE = frozenset(f"orchestration.{act}_server" for act in ("operate", "change", "delete"))
"""Permissions about a server that is there; without one they are asked for in principle."""
OF_THE_FLEET = (
    frozenset().union(*(IN_DJANGO.get(permission, frozenset()) for permission in OF_SERVERS))
    - OF_ONE
    - frozenset(f"orchestration.{act}_servedmodel" for act in ("add", "delete"))  # which are a server's
)
"""Those that change what is for all servers, or makes one more."""

ASSIGNED = "citadel_assigned"


class People(ModelBackend):
    """Accounts of the console, and what they may."""

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        """Whether somebody may do that: with `obj`, or in principle."""
        if perm in OF_ONE:
            return super().has_perm(user_obj, perm) and (obj is None or _may_operate(user_obj, obj.server_id))
        if perm in OF_THE_FLEET:
            return super().has_perm(user_obj, perm) and _servers(user_obj) is None
        return super().has_perm(user_obj, perm, obj)


def _may_operate(user: Any, server_id: str) -> bool:
    servers = _servers(user)
    return servers is None or server_id in servers


def _servers(user: Any) -> list[str] | None:
    """Those of a person, None for all: looked up once a request, as Django does it with permissions."""
    known = vars(user)
    if ASSIGNED not in known:
        known[ASSIGNED] = Assignment.objects.filter(user_id=user.pk).values_list("servers", flat=True).first()
    found: list[str] | None = known[ASSIGNED]
    return found
