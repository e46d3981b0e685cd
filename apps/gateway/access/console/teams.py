"""What people see and change in the console of the teams that they belong to; of others' teams nothing.

Django's permissions say what somebody may with all teams (`roles`). Who lacks one is asked about as the API asks about
keys (`citadel.permissions`): a person is a caller with a role in each of its teams. What lies in another team is
answered like what is not there: the same 404.
"""

from collections.abc import Callable, Collection
from typing import Any

from django.contrib import admin
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.http import Http404, HttpRequest
from django.shortcuts import get_object_or_404

from apps.gateway.access.console import witness
from apps.gateway.access.console.roles import memberships_of, roles_of
from apps.gateway.access.keys import granting
from apps.gateway.limits.waiting import PRIORITIES
from apps.gateway.models import Key, Team
from citadel import config
from citadel.caller import Caller, Limits
from citadel.errors import Forbidden
from citadel.permissions import MANAGE_KEYS, may
from citadel.rows import Discreet
from citadel.security_log import Event

ROLE = "developer"
"""What a person of a team is beside what it is there."""
PERSON = "citadel_person"


def person(request: HttpRequest) -> Caller:
    """Who asks, with the teams that it belongs to, as the database says: looked up once a request.

    Keys that it makes may at most what a developer's key may that nobody has given limits of its own.
    """
    known = vars(request)
    if PERSON not in known:
        known[PERSON] = _person(request.user)
    found: Caller = known[PERSON]
    return found


def managed(request: HttpRequest) -> frozenset[str]:
    """The teams whose keys somebody may manage."""
    by = person(request)
    return frozenset(team for team in by.teams if may(by, MANAGE_KEYS, team))


class OfTeams(admin.ModelAdmin):
    """A page about what belongs to teams: seen of all of them by who may, by others of their own."""

    def of_teams(self, teams: Collection[str]) -> Q:
        """Which rows are those of teams with these slugs."""
        return Q(team__slug__in=teams)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Those that one sees."""
        rows = super().get_queryset(request)
        if super().has_view_permission(request):
            return rows
        return rows.filter(self.of_teams(granting.teams_seen(person(request))))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """One of them; 404 for all others, where Django's own pages would lead elsewhere."""
        found = super().get_object(request, object_id, from_field)
        if found is None:
            if not super().has_view_permission(request):  # who sees all has asked for what is not there
                witness.tell(Event.ACCESS_DENIED, request)
            raise Http404
        return found

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whether the console's first page leads here."""
        return super().has_module_permission(request) or self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Who belongs to a team may, and sees what is of it."""
        if super().has_view_permission(request, obj):
            return True
        seen = granting.teams_seen(person(request))
        return bool(seen) if obj is None else self._is_of(obj, seen)

    def _is_of(self, obj: Model, teams: Collection[str]) -> bool:
        return type(obj)._default_manager.filter(self.of_teams(teams), pk=obj.pk).exists()


class KeysOfTeams(OfTeams, Discreet):
    """Keys, which who owns a team makes, changes, rotates and revokes there."""

    secrets = ("digest", "former_digest")

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Key:
        """One of them. One that is to be changed is locked until that is done: all of the row is judged and saved, and
        nobody shall revoke or rotate it in between.
        """
        found: Key = super().get_object(request, object_id, from_field)
        if request.method != "POST":
            return found
        with transaction.atomic():  # within that of the change
            return get_object_or_404(Key.objects.select_for_update(), pk=found.pk)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Who manages all keys, or a team's."""
        return super().has_add_permission(request) or bool(managed(request))

    def has_change_permission(self, request: HttpRequest, obj: Key | None = None) -> bool:
        """The same; of a team's those in force that may no more than its owner gives."""
        if self.manages_all(request):
            return True
        return (
            bool(managed(request)) if obj is None else not obj.revoked and _allowed(granting.check_giving, request, obj)
        )

    def may_revoke(self, request: HttpRequest, key: Key) -> bool:
        """Whether somebody may have a key refused: owners those too that may more than they give."""
        return self.manages_all(request) or _allowed(granting.check_revoking, request, key)

    def manages_all(self, request: HttpRequest) -> bool:
        """Whether somebody may change keys of any team, into whatever."""
        return super().has_change_permission(request)

    def check_asked(self, request: HttpRequest, key: Key) -> None:
        """Forbidden, or Conflict, where somebody may not have a key be like this; before it is kept."""
        if not key.revoked and not Key.objects.filter(pk=key.pk, team=key.team).exists():  # it comes to the team
            granting.check_room(get_object_or_404(Team.objects.select_for_update(), pk=key.team.pk))
        if not super().has_add_permission(request):
            granting.check_giving(person(request), key)


def _allowed(check: Callable[[Caller, Key], None], request: HttpRequest, key: Key) -> bool:
    try:
        check(person(request), key)
    except Forbidden:
        return False
    return True


def _person(user: Any) -> Caller:
    usual = config.load().limits.client
    return Caller(
        key_id="",
        name=user.get_username(),
        team="",
        role=ROLE,
        models=None,
        limits=Limits(usual.requests_per_minute, usual.tokens_per_minute, usual.concurrent),
        max_priority=PRIORITIES[Key.Priority.HIGH],
        memberships=memberships_of(user, roles_of(user)),
    )
