"""The console's sessions: what one must have shown to be in force, and when it ends.

A session that has only shown a password is not enough for somebody who has a second factor, nor where everybody must
have one: that one may set it up and do nothing else. Who signs in with an OpenID provider has shown it there. When all
factors that an account had when its session showed one are taken away, the session is over; so are all others when
somebody changes a factor or the password. Who may less than before in a session, anywhere or in a team, signs in anew.
"""

import time
from enum import Enum, auto
from importlib import import_module
from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.signals import authentication_step_completed
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added, authenticator_removed, authenticator_reset
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AbstractBaseUser, AbstractUser, AnonymousUser
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import SessionBase
from django.dispatch import receiver
from django.http import HttpRequest

from apps.gateway.access.console.roles import memberships_of, roles_of
from apps.gateway.access.console.store import end_all
from citadel import config
from citadel.permissions import IN_OWN_TEAM, ROLES

SIGNED_IN, SEEN, PROVEN = "citadel_signed_in", "citadel_seen", "citadel_proven"
SHOWN = "citadel_shown"
"""When its person has last shown to be who they are."""
CLIENT = "citadel_client"
"""From which address it was begun, and by which browser."""
LONGEST_BROWSER = 200
FACTORS = "citadel_factors"
"""Of a session that has shown one: those that its account had then."""
RIGHTS = "citadel_rights"
"""What its person may, as of its last use."""
FACTOR, PROVIDER = "mfa", "socialaccount"
"""What allauth calls the steps of signing in that are more than a password."""
OFTEN = 10
"""Uses of a session are written down so many times in the time after which an idle one ends."""


class Standing(Enum):
    """What a session is good for."""

    IN_FORCE = auto()
    SETTING_UP = auto()
    """Its account must set up a second factor first."""
    OVER = auto()


def rights(user: AbstractUser) -> frozenset[str]:
    """What `user` may: the permissions of a person's roles, and those in teams with the team's slug before them."""
    roles = roles_of(user)
    teams = memberships_of(user, roles)
    in_teams = (f"{team}:{may}" for team, role in teams for may in ROLES[role] | IN_OWN_TEAM[role])
    return frozenset[str]().union(*(ROLES[role] for role in roles), in_teams)


def standing(session: SessionBase, user: AbstractUser, held: frozenset[str]) -> Standing:
    """What the session of `user`, who holds these rights, is good for now."""
    rules = config.load()
    if not (user.is_active and user.is_staff) or _age(session) > rules.console.session_lifetime:
        return Standing.OVER
    if not held.issuperset(session.get(RIGHTS, ())):
        return Standing.OVER
    proven = _proven(session, user)
    if proven == PROVIDER:
        return Standing.IN_FORCE
    if proven == FACTOR:
        return Standing.IN_FORCE if _still_there(session, user) else Standing.OVER
    if has_second_factor(user):  # without having shown it: set up since, in another session
        return Standing.OVER
    return Standing.SETTING_UP if rules.asks_second_factor else Standing.IN_FORCE


def has_second_factor(user: AbstractUser) -> bool:
    """Whether an account has one; codes for when it is lost are none by themselves."""
    return bool(_factors(user).exists())


def touch(session: SessionBase, held: frozenset[str]) -> None:
    """Notes that a session is used, which puts off its end, and what its person may; not at each request, since that is
    a write.
    """
    now = time.time()
    if held != set(session.get(RIGHTS, ())):
        session[RIGHTS] = sorted(held)
    if now - session.get(SEEN, 0) > config.load().console.session_idle / OFTEN:
        session[SEEN] = now


def find(session_key: str) -> tuple[SessionBase, AbstractBaseUser | AnonymousUser]:
    """The session of that key, and whose it is; a stranger's where it has ended."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    return request.session, get_user(request)


def _factors(user: AbstractBaseUser) -> Any:
    return Authenticator.objects.filter(user_id=user.pk).exclude(type=Authenticator.Type.RECOVERY_CODES)


def _still_there(session: SessionBase, user: AbstractBaseUser) -> bool:
    """Whether one is left of the factors that a session relies on."""
    return bool(_factors(user).filter(pk__in=session.get(FACTORS, ())).exists())


def _note_factors(session: SessionBase, user: AbstractBaseUser) -> None:
    session[PROVEN] = [str(user.pk), FACTOR]
    session[FACTORS] = list(_factors(user).values_list("pk", flat=True))


def _age(session: SessionBase) -> float:
    """Seconds since somebody signed in; those of old that don't tell are too old."""
    return time.time() - float(session.get(SIGNED_IN, 0))


def _proven(session: SessionBase, user: AbstractBaseUser) -> str | None:
    """By what more than a password `user` has signed in."""
    who, by = session.get(PROVEN, (None, None))
    return by if who == str(user.pk) else None


@receiver(user_logged_in)
def _begin(request: HttpRequest, user: AbstractUser, **_details: Any) -> None:
    request.session[RIGHTS] = sorted(rights(user))
    request.session[SIGNED_IN] = request.session[SEEN] = request.session[SHOWN] = time.time()
    browser = request.headers.get("user-agent", "")[:LONGEST_BROWSER]
    request.session[CLIENT] = [get_adapter().get_client_ip(request), browser]


@receiver(authentication_step_completed)
def _note_step(request: HttpRequest, user: AbstractBaseUser, method: str, **_details: Any) -> None:
    request.session[SHOWN] = time.time()
    if method == FACTOR:
        _note_factors(request.session, user)
    elif method == PROVIDER:
        request.session[PROVEN] = [str(user.pk), PROVIDER]


@receiver(authenticator_added)
def _note_proof(request: HttpRequest, user: AbstractBaseUser, authenticator: Authenticator, **_details: Any) -> None:
    """Who has just set one up has shown it, in a session that is from now on good for more, and so another one."""
    if authenticator.type != Authenticator.Type.RECOVERY_CODES:
        _note_factors(request.session, user)
        request.session.cycle_key()


@receiver([authenticator_added, authenticator_removed, authenticator_reset])
def _end_others(request: HttpRequest, user: AbstractBaseUser, **_details: Any) -> None:
    """Who changes what they sign in with may have found somebody else in."""
    end_all(user.pk, but=request.session.session_key)


@receiver(authenticator_removed)
def _forget_proof(request: HttpRequest, user: AbstractUser, **_details: Any) -> None:
    """Who has taken the last one away goes on like somebody who had none."""
    if not has_second_factor(user) and _proven(request.session, user) == FACTOR:
        del request.session[PROVEN]
