"""Signing in with a configured OpenID provider: who comes in by it, and as what.

A person is known by the provider and the subject that it names (OpenID Connect Core 1.0, 2), by nothing else: an e-mail
address or a name that somebody here has too makes nobody them. Who has no role by the provider's word does not come in.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from django.contrib.auth.models import AbstractUser, Group
from django.http import HttpRequest
from django.shortcuts import render

from apps.gateway.access.console.outgoing import Session
from apps.gateway.access.console.roles import CONSOLE_ROLES
from citadel import config
from citadel.sections import ProviderSection

log = structlog.get_logger("citadel.console")

NO_ROLE = "You are known to the provider, but have no role here: an administrator gives it."
UNSOUND = "The provider's answers don't agree with each other, or with what is configured here."


class People(DefaultSocialAccountAdapter):
    """What allauth asks of a project."""

    def get_requests_session(self) -> Session:
        """By which providers are asked."""
        return Session()

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        """Yes: who has no role has been refused before."""
        return True

    def authenticate_by_email(self, sociallogin: SocialLogin) -> None:
        """Nobody."""
        return

    def on_authentication_error(
        self, request: HttpRequest, provider: Any, error: Any = None, exception: Any = None, **_more: Any
    ) -> None:
        """Tells the operator; the person is told that it does."""
        log.warning("provider_sign_in_failed", provider=provider.sub_id, error=error, reason=type(exception).__name__)

    def populate_user(self, request: HttpRequest, sociallogin: SocialLogin, data: Mapping[str, Any]) -> AbstractUser:
        """What the provider says of their names, as much of it as there is room for."""
        user: AbstractUser = super().populate_user(request, sociallogin, data)
        for name in ("username", "first_name", "last_name", "email"):
            room: int = getattr(user._meta.get_field(name), "max_length")  # noqa: B009  # each of these has one
            if len(getattr(user, name)) > room:
                setattr(user, name, "")
        return user

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Gives the role that the provider's word makes, or takes it and refuses."""
        section = _section(sociallogin)
        claims = claims_of(sociallogin.account.extra_data, section)
        if claims is None or sociallogin.state.get("process") != "login":
            raise _refused(request, UNSOUND)
        role = role_of(claims, section)
        sociallogin.email_addresses = []
        sociallogin.account.extra_data = {"sub": claims["sub"]}  # who they are is asked each time, and kept nowhere
        sociallogin.user.is_staff = role is not None
        if sociallogin.is_existing:
            keep_role(sociallogin.user, role)
        if role is None:
            raise _refused(request, NO_ROLE)
        sociallogin.role = role

    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> AbstractUser:
        """The account of somebody who comes for the first time."""
        user: AbstractUser = super().save_user(request, sociallogin, form)
        keep_role(user, sociallogin.role)
        return user


def claims_of(data: Mapping[str, Any], section: ProviderSection) -> Mapping[str, Any] | None:
    """What a provider says of a person, in its ID token and beside it; None where that doesn't fit together.

    What it says beside the token must be of the same subject (OpenID Connect Core 1.0, 5.3.2).
    """
    token, beside = data.get("id_token"), data.get("userinfo", {})
    if not isinstance(token, Mapping) or not isinstance(beside, Mapping):
        return None
    subject = token.get("sub")
    if not isinstance(subject, str) or not subject or beside.get("sub", subject) != subject:
        return None
    if str(token.get("iss", "")).rstrip("/") != section.issuer.rstrip("/"):
        return None
    return {**beside, **token}


def role_of(claims: Mapping[str, Any], section: ProviderSection) -> str | None:
    """What a person is here; None where the provider's word makes nothing of them."""
    said = claims.get(section.roles_claim)
    groups = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    return next((role for name, role in section.roles.items() if name in groups), section.role)


def keep_role(user: AbstractUser, role: str | None) -> None:
    """Has the account this role and no other; without one it is no longer one of the console's."""
    user.is_staff = role is not None
    user.save(update_fields=["is_staff"])
    user.groups.remove(*Group.objects.filter(name__in=CONSOLE_ROLES).exclude(name=role or ""))
    if role is not None:
        user.groups.add(Group.objects.get(name=role))


def _section(sociallogin: SocialLogin) -> ProviderSection:
    name = sociallogin.account.provider
    return next(section for section in config.load().console.providers if section.name == name)


def _refused(request: HttpRequest, reason: str) -> ImmediateHttpResponse:
    return ImmediateHttpResponse(render(request, "console/refused.html", {"reason": reason}, status=403))
