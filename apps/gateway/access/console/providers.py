"""Signing in with a configured OpenID provider: who comes in by it, and as what.

A person is known by the provider and the subject that it names (OpenID Connect Core 1.0, 2), by nothing else: an e-mail
address or a name that somebody here has too makes nobody them. Who has no role by the provider's word does not come in.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from django.contrib.auth.models import AbstractUser, Group
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.shortcuts import render

from apps.gateway.access.claims import role_of
from apps.gateway.access.console import strictness, witness
from apps.gateway.access.console.outgoing import Session
from apps.gateway.access.console.roles import CONSOLE_ROLES
from citadel import config
from citadel.sections import ProviderSection
from citadel.security_log import Event

NO_ROLE = "You are known to the provider, but have no role here: an administrator gives it."
AT_ONCE = "The same person, or one of the same name, has come at the same moment. Sign in again."
TOO_WEAK = "The provider does not say that you have signed in there as strictly, or as lately, as is asked for here."
UNSOUND = "The provider's answers don't agree with each other, or with what is configured here."


class Provider(OpenIDConnectProvider):
    """One of the configured providers."""

    def get_redirect_from_request_kwargs(self, request: HttpRequest) -> dict[str, Any]:
        """What it is asked: by the settings alone, where allauth takes more from the address that somebody opens.

        The nonce ties the ID token to this question (OpenID Connect Core 1.0, 3.1.2.1).
        """
        nonce = secrets.token_urlsafe(16)
        usual = super().get_redirect_from_request_kwargs(request)
        asked = {"nonce": nonce, **strictness.question(_section(self.app.provider_id))}
        return {**usual, "scope": self.get_scope(), "auth_params": asked, "nonce": nonce}

    def extract_extra_data(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept: who somebody is; all else is asked each time."""
        return {"sub": self.extract_uid(data)}

    def sociallogin_from_response(self, request: HttpRequest, response: Mapping[str, Any]) -> SocialLogin:
        """Who comes, with all that is said of them."""
        sociallogin = super().sociallogin_from_response(request, response)
        sociallogin.said = response
        return sociallogin


class People(DefaultSocialAccountAdapter):
    """What allauth asks of a project."""

    def get_requests_session(self) -> Session:
        """By which providers are asked."""
        return Session()

    def get_provider(self, request: HttpRequest, provider: str, client_id: str | None = None) -> Provider:
        """The one of that name; SocialApp.DoesNotExist."""
        return Provider(request, app=super().get_provider(request, provider, client_id).app)

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
        reason = " ".join(filter(None, (str(error or ""), type(exception).__name__ if exception else "")))
        witness.tell(Event.SIGN_IN_FAILED, request, by=provider.sub_id, reason=reason)

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
        section = _section(sociallogin.account.provider)
        claims = claims_of(sociallogin.said, section, sociallogin.state.get("nonce"))
        if claims is None or sociallogin.state.get("process") != "login":
            raise _refused(request, section, UNSOUND)
        if not strictness.is_met(sociallogin.said["id_token"], section, time.time()):
            raise _refused(request, section, TOO_WEAK)
        role = role_of(claims, section)
        sociallogin.email_addresses = []
        sociallogin.user.is_staff = role is not None
        if sociallogin.is_existing:
            keep_role(sociallogin.user, role)
        if role is None:
            raise _refused(request, section, NO_ROLE)
        sociallogin.role = role

    def save_user(self, request: HttpRequest, sociallogin: SocialLogin, form: Any = None) -> AbstractUser:
        """The account of somebody who comes for the first time, whole or not at all."""
        try:
            with transaction.atomic():
                user: AbstractUser = super().save_user(request, sociallogin, form)
                keep_role(user, sociallogin.role)
        except IntegrityError:
            raise _refused(request, _section(sociallogin.account.provider), AT_ONCE, status=503) from None
        return user


def claims_of(data: Mapping[str, Any], section: ProviderSection, nonce: str | None) -> Mapping[str, Any] | None:
    """What a provider says of a person, in its ID token and beside it; None where that doesn't fit together.

    The token must be for us, and for the question that had `nonce` (OpenID Connect Core 1.0, 3.1.3.7); what is said
    beside it must be of the same subject (5.3.2). Audience and end have been looked at by allauth, if they are there.
    """
    token, beside = data.get("id_token"), data.get("userinfo", {})
    if not isinstance(token, Mapping) or not isinstance(beside, Mapping):
        return None
    subject = token.get("sub")
    fits = (
        isinstance(subject, str)
        and subject != ""
        and beside.get("sub", subject) == subject
        and str(token.get("iss", "")).rstrip("/") == section.issuer.rstrip("/")
        and token.get("azp", section.client_id) == section.client_id
        and token.get("nonce") == nonce
        and "exp" in token
    )
    return {**beside, **token} if fits else None


def keep_role(user: AbstractUser, role: str | None) -> None:
    """Has the account this role and no other; without one it is no longer one of the console's."""
    user.is_staff = role is not None
    user.save(update_fields=["is_staff"])
    user.groups.remove(*Group.objects.filter(name__in=CONSOLE_ROLES).exclude(name=role or ""))
    if role is not None:
        user.groups.add(Group.objects.get(name=role))


def _section(name: str) -> ProviderSection:
    return next(section for section in config.load().console.providers if section.name == name)


def _refused(request: HttpRequest, section: ProviderSection, reason: str, status: int = 403) -> ImmediateHttpResponse:
    witness.tell(Event.SIGN_IN_FAILED, request, by=section.name, reason=reason)
    return ImmediateHttpResponse(render(request, "console/refused.html", {"reason": reason}, status=status))
