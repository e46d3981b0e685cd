"""allauth's forms for a second factor, of whose refusals the security log hears (the setting MFA_FORMS)."""

from itertools import chain
from typing import Any

from allauth.core import context
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.webauthn.forms import AuthenticateWebAuthnForm, LoginWebAuthnForm, ReauthenticateWebAuthnForm

from apps.gateway.access.console import witness
from citadel.security_log import Event

TOLD = {
    "incorrect_code": Event.SIGN_IN_FAILED,
    "invalid": Event.SIGN_IN_FAILED,
    "too_many_login_attempts": Event.SIGN_IN_LOCKED,
}
"""What each of allauth's errors is in the log."""


class Witnessed:
    """A form that proves somebody by a code, a security key or a passkey."""

    user: Any
    errors: Any

    def full_clean(self) -> None:
        """Judges what was sent, and tells where it proves nothing."""
        super().full_clean()  # type: ignore[misc]  # of the form that this stands before
        for error in chain(*self.errors.as_data().values()):
            if event := TOLD.get(error.code):
                account = self.user.get_username() if self.user else None
                witness.tell(event, context.request, account=account, by="second factor")


class Code(Witnessed, AuthenticateForm):
    """Of who signs in with a code."""


class CodeAgain(Witnessed, ReauthenticateForm):
    """Of who confirms with a code that it is still them."""


class SecurityKey(Witnessed, AuthenticateWebAuthnForm):
    """Of who signs in with a security key."""


class SecurityKeyAgain(Witnessed, ReauthenticateWebAuthnForm):
    """Of who confirms with one."""


class Passkey(Witnessed, LoginWebAuthnForm):
    """Of who signs in with a passkey alone."""
