"""Signing in to the console with name and password: what allauth asks of a project."""

from functools import cache
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.forms import LoginForm
from django.contrib import messages
from django.contrib.auth import authenticate
from django.contrib.auth.models import AbstractUser
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from apps.gateway.access.console import devices, lockout, witness
from citadel import config
from citadel.client_address import Proxies
from citadel.security_log import Event

NOT_FOR_YOU = "This account may not use the console."


class SignInForm(LoginForm):
    """allauth's form, whose field for the name is called what it always was here."""

    def add_prefix(self, field_name: str) -> str:
        """The name of a field in the page."""
        return "username" if field_name == "login" else str(super().add_prefix(field_name))


class Accounts(DefaultAccountAdapter):
    """Who may sign in. Nobody signs up: accounts are made by administrators and by configured providers."""

    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": "No account of this console has that name and password.",
        "incorrect_password": "That is not the password.",
        "too_many_login_attempts": "Too many wrong codes. Try again in five minutes.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """No."""
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        """From where a request comes, by the word of trusted proxies; empty where that can't be known."""
        peer, told = request.META.get("REMOTE_ADDR", ""), request.META.get("HTTP_X_FORWARDED_FOR", "")
        scope = {"client": (peer, 0) if peer else None}
        return str(_proxies().client(scope, {b"x-forwarded-for": told.encode("latin-1", "replace")}) or "")

    def authenticate(self, request: HttpRequest, **credentials: Any) -> AbstractUser | None:
        """The account of that name and password; None where there is none that may use the console.

        ValidationError after too many. Which of all that it was, the answer doesn't tell, nor how long it takes.
        """
        name = str(credentials.get("username", ""))
        try:
            attempt = lockout.attempt(name, self.get_client_ip(request), devices.of(request, name))
        except lockout.Locked as locked:
            raise ValidationError(str(locked), code="too_many_login_attempts") from None
        user = authenticate(request, **credentials)
        if not isinstance(user, AbstractUser) or not user.is_staff:
            witness.tell_failure(request, name, by="password")
            return None
        attempt.take_back()
        return user

    def pre_login(self, request: HttpRequest, user: AbstractUser, **details: Any) -> HttpResponse | None:
        """Refuses whom a password would not have let in either: those with a passkey, and from providers."""
        if user.is_active and user.is_staff:
            return None
        witness.tell_failure(request, user.get_username(), reason=NOT_FOR_YOU)
        messages.error(request, NOT_FOR_YOU)
        return redirect("account_login")

    def post_login(self, request: HttpRequest, user: AbstractUser, **details: Any) -> HttpResponse:
        """Where to go, and the browser known from now on."""
        response: HttpResponse = super().post_login(request, user, **details)
        devices.remember(response, user.get_username())
        return response

    def logout(self, request: HttpRequest) -> None:
        """Ends the session of who asks for it."""
        witness.tell(Event.SESSION_ENDED, request, reason="signed out")
        super().logout(request)


@cache
def _proxies() -> Proxies:
    return Proxies(config.load().server.trusted_proxies)
