"""Browsers that have signed in to an account before: a signed cookie each, which opens nothing.

It tells a person who mistypes from a stranger who guesses (OWASP's device cookies): see `lockout`.
"""

import secrets

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse

from apps.gateway.access.console.lockout import plain

COOKIE = "citadel_device"
GOOD_FOR = 90 * 24 * 3600
"""Seconds."""
_SALT = "citadel.console.device"


def of(request: HttpRequest, account: str) -> str | None:
    """The device that asks, where it is known to the account; None for strangers."""
    try:
        told = signing.loads(request.COOKIES.get(_name(), ""), salt=_SALT, max_age=GOOD_FOR)
        return str(told["device"]) if told["account"] == plain(account) else None
    except (signing.BadSignature, KeyError, TypeError):
        return None


def remember(response: HttpResponse, account: str) -> None:
    """Makes the browser that gets the answer known to the account that it has signed in to."""
    told = signing.dumps({"account": plain(account), "device": secrets.token_urlsafe(16)}, salt=_SALT)
    response.set_cookie(
        _name(),
        told,
        max_age=GOOD_FOR,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


def _name() -> str:
    return settings.COOKIE_PREFIX + COOKIE
