"""The console's roles: Django's groups, with what `citadel.permissions` says in Django's words.

They are made anew at each `migrate`. What no permission of the API stands for is an administrator's alone.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from django.apps import apps as installed
from django.apps.registry import Apps
from django.contrib.auth.management import create_permissions
from django.db.models import Q
from django.db.models.signals import post_migrate
from django.dispatch import receiver

from citadel.permissions import (
    MANAGE_TEAMS,
    OPERATE_FLEET,
    REGISTER_SERVERS,
    ROLES,
    SEE_AUDIT,
    SEE_FLEET,
    SEE_KEYS,
)

ADMINISTRATOR = "admin"
CONSOLE_ROLES = (ADMINISTRATOR, "operator", "auditor", "developer")

FLEET = ("server", "servedmodel", "modelclass", "alias", "event", "hook", "hookrule", "receivedwebhook")
SPENDING = ("budget", "price")
SET_FREELY = ("membership", "assignment", *SPENDING)
EVENTS_SENT = ("subscription", "delivery")

IN_DJANGO: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        SEE_FLEET: frozenset(f"orchestration.view_{model}" for model in (*FLEET, *EVENTS_SENT)),
        REGISTER_SERVERS: frozenset({"orchestration.add_server", "orchestration.add_servedmodel"}),
        OPERATE_FLEET: frozenset(
            {
                "orchestration.operate_server",
                "orchestration.delete_server",
                "orchestration.delete_servedmodel",
                "orchestration.add_subscription",
                "orchestration.change_subscription",
                "orchestration.delete_subscription",
            }
        ),
        SEE_KEYS: frozenset(
            f"gateway.view_{model}" for model in ("team", "membership", "assignment", "key", *SPENDING, "spend")
        ),
        MANAGE_TEAMS: frozenset(
            {
                *(f"gateway.{act}_{model}" for model in ("team", "key") for act in ("add", "change")),
                *(f"gateway.{act}_{model}" for model in SET_FREELY for act in ("add", "change", "delete")),
            }
        ),
        SEE_AUDIT: frozenset({"audit.view_record"}),
    }
)
"""What each permission of the API is in the console; those that are not here mean nothing there."""


def in_django(role: str) -> frozenset[str]:
    """What a role may in the console, as Django names it."""
    return frozenset().union(*(IN_DJANGO.get(permission, frozenset()) for permission in ROLES[role]))


@receiver(post_migrate)
def keep_roles(app_config: Any, using: str, apps: Apps, **_details: Any) -> None:
    """Makes the groups what the table says, once all of Django's permissions are there."""
    if app_config.name != "apps.gateway" or not _are_there(apps):
        return
    for config in installed.get_app_configs():  # which Django would do itself, but after this
        create_permissions(config, verbosity=0, using=using, apps=apps)
    group_model, permission_model = apps.get_model("auth", "Group"), apps.get_model("auth", "Permission")
    for role in CONSOLE_ROLES:
        group, _ = group_model.objects.using(using).get_or_create(name=role)
        everything = permission_model.objects.using(using)
        group.permissions.set(everything.all() if role == ADMINISTRATOR else everything.filter(_named(in_django(role))))


def _are_there(apps: Apps) -> bool:
    """Whether all tables are; somebody may be migrating one app alone."""
    try:
        return all(apps.get_model(name) for name in ("auth.Permission", "orchestration.Server", "audit.Record"))
    except LookupError:
        return False


def _named(names: frozenset[str]) -> Q:
    """Those of these names, `app.codename`."""
    wanted = Q(pk__in=[])
    for app, codename in _parts(names):
        wanted |= Q(content_type__app_label=app, codename=codename)
    return wanted


def _parts(names: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name in sorted(names):
        app, _, codename = name.partition(".")
        yield app, codename


def roles_of(user: Any) -> frozenset[str]:
    """A person's roles in the console."""
    found = frozenset(user.groups.filter(name__in=CONSOLE_ROLES).values_list("name", flat=True))
    return found | {ADMINISTRATOR} if user.is_superuser else found


def memberships_of(user: Any, roles: frozenset[str]) -> frozenset[tuple[str, str]]:
    """A person's teams, and the role in each; none for who has no `roles` in the console."""
    return frozenset(user.memberships.values_list("team__slug", "role") if roles else ())
