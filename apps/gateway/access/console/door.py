"""Middleware: the console's pages are for sessions in force alone, whichever way somebody came to one."""

import struct
from collections.abc import Sequence
from typing import Any

import requests
import structlog
from allauth.account.adapter import get_adapter
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import DataError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin
from redis.exceptions import RedisError

from apps.gateway.access.console import lockout, witness
from apps.gateway.access.console.session import Standing, rights, standing, touch
from citadel import config
from citadel.security_log import Event

log = structlog.get_logger("citadel.console")

SETTING_UP = ("mfa_", "account_reauthenticate", "account_logout", "admin:jsi18n")
"""How the pages' names begin that are there for who must set up a second factor."""
SET_UP_FIRST = "This console asks for a second factor. Set one up to go on: an authenticator app, or a security key."
COUNTS_AWAY = "Signing in is not possible at the moment: attempts can't be counted. Try again in a minute."
NOT_UNDERSTOOD = "The provider's answer can't be understood. Sign in another way, and tell an administrator."
NO_PASSKEY = "What the browser has sent is no passkey or security key. Try again, or use another browser."
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, struct.error, ImproperlyConfigured, DataError)
"""What allauth raises where a provider or an authenticator leaves out what must be there, or says it otherwise."""
PASSKEYS = ("mfa_add_webauthn", "mfa_authenticate", "mfa_login_webauthn", "mfa_reauthenticate_webauthn")
"""The pages that take what an authenticator says."""
CHALLENGE, OF_CHALLENGES = "mfa_login_webauthn", 30
"""The page that gives one to whoever asks, and keeps it in a session until that ends; so many a minute."""
PROVIDER_AWAY = "The provider can't be reached at the moment. Try again in a minute, or sign in with a password."


class Door(MiddlewareMixin):
    """Looks at the session before any view runs."""

    def process_view(
        self, request: HttpRequest, view: object, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        """Where to go instead; None for the view. Who has not signed in is sent to do so by the views themselves, and
        can't ask for pages without end.
        """
        if not request.user.is_authenticated:
            return _flooded(request)
        if "%00" in request.META["QUERY_STRING"]:  # PostgreSQL takes it in no text, so there is nothing to look for
            return HttpResponse("There is a NUL in the address.", status=400, content_type="text/plain")
        held = rights(request.user)
        found = standing(request.session, request.user, held)
        if found is Standing.OVER:
            witness.tell(Event.SESSION_ENDED, request, reason="it has lost what it stood on, or its time is over")
            logout(request)
            return redirect_to_login(request.get_full_path(), reverse("account_login"))
        if found is Standing.SETTING_UP and not _name(request).startswith(SETTING_UP):
            messages.info(request, SET_UP_FIRST)
            return redirect("mfa_index")
        touch(request.session, held)
        return None

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """What is told where a part is away that signing in needs. Who may not do something is told so by Django."""
        if isinstance(error, PermissionDenied):
            witness.tell(Event.ACCESS_DENIED, request, reason=str(error))
        if isinstance(error, RedisError):
            return _refused(request, COUNTS_AWAY, 503)
        if isinstance(error, requests.RequestException):
            return _refused(request, PROVIDER_AWAY, 503)
        if isinstance(error, MALFORMED) and _name(request).startswith("openid_connect_"):
            log.warning("provider_not_understood", exc_info=error)
            return _refused(request, NOT_UNDERSTOOD, 503)
        if isinstance(error, MALFORMED) and _name(request) in PASSKEYS:
            witness.tell(Event.SIGN_IN_FAILED, request, by="second factor", reason=type(error).__name__)
            return _refused(request, NO_PASSKEY, 400)
        return None


def _name(request: HttpRequest) -> str:
    """What the address is called that is asked for."""
    return request.resolver_match.view_name if request.resolver_match else ""


def _flooded(request: HttpRequest) -> HttpResponse | None:
    """What is told where strangers ask too often from one address; None where they don't, or it can't be counted."""
    address = get_adapter().get_client_ip(request)
    try:
        lockout.check_stranger(address, "pages", config.load().limits.others_per_minute)
        if _name(request) == CHALLENGE and request.method == "GET":
            lockout.check_stranger(address, "challenges", OF_CHALLENGES)
    except lockout.Locked as locked:
        return HttpResponse(str(locked), status=429, content_type="text/plain", headers={"Retry-After": "60"})
    except RedisError:
        return None
    return None


def _refused(request: HttpRequest, reason: str, status: int) -> HttpResponse:
    return render(request, "console/refused.html", {"reason": reason}, status=status)
