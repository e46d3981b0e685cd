"""What the security log hears of the console: who signs in, fails to and leaves, and what they change of their own."""

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.account.authentication import get_authentication_records
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added, authenticator_removed, authenticator_reset
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.auth.signals import user_logged_in
from django.dispatch import Signal, receiver
from django.http import HttpRequest, HttpResponse
from django.views.csrf import csrf_failure

from citadel import security_log
from citadel.security_log import Event

CHANGES: dict[Signal, str] = {
    authenticator_added: "added",
    authenticator_removed: "taken away",
    authenticator_reset: "made anew",
}


def tell(event: Event, request: HttpRequest, **details: object) -> None:
    """Tells of what somebody does in the console, with where they are; who they are unless it is said."""
    if security_log.is_due(event):
        who = details.pop("account") if "account" in details else request.user.get_username()
        address = get_adapter().get_client_ip(request)
        security_log.write(event, account=who, address=address, method=request.method, path=request.path, **details)


def tell_failure(request: HttpRequest, name: str, **details: object) -> None:
    """Tells that somebody did not sign in. A name is told where somebody has it: others may be passwords."""
    if security_log.is_due(Event.SIGN_IN_FAILED):
        is_account = get_user_model()._default_manager.filter(username=name).exists()
        address = get_adapter().get_client_ip(request)
        security_log.write(
            Event.SIGN_IN_FAILED, account=name if is_account else None, known=is_account, address=address, **details
        )


def refuse_form(request: HttpRequest, reason: str = "") -> HttpResponse:
    """The answer to a form that does not come from a page of ours (Django's own), and a line about it."""
    tell(Event.FORM_REFUSED, request, reason=reason)
    return csrf_failure(request, reason)


@receiver(user_logged_in)
def _signed_in(request: HttpRequest, user: AbstractBaseUser, **_details: Any) -> None:
    ways = [
        str(one.get("type") or one.get("provider") or one["method"])
        for one in get_authentication_records(request, user)
    ]
    tell(Event.SIGNED_IN, request, account=user.get_username(), by=", ".join(ways))


@receiver(tuple(CHANGES))
def _factor_changed(
    signal: Signal, request: HttpRequest, user: AbstractBaseUser, authenticator: Authenticator, **_details: Any
) -> None:
    tell(Event.FACTOR_CHANGED, request, account=user.get_username(), kind=authenticator.type, change=CHANGES[signal])
