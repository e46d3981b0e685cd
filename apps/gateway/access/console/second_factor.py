"""Second factors: what allauth's TOTP, passkeys and recovery codes ask of a project."""

import base64
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from allauth.mfa.signals import authenticator_added
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db.models.signals import post_delete
from django.dispatch import receiver
from django.http import HttpRequest
from django.http.request import split_domain_port

from apps.gateway.access.console.session import has_second_factor

ISSUER = "Citadel"
UNREADABLE = "Your second factor was set up under another secret key of Citadel: an administrator must take it away."


class Factors(DefaultMFAAdapter):
    """Keeps what makes codes encrypted, and names this console to apps and keys."""

    def encrypt(self, text: str) -> str:
        """As it is kept in the database, whose reader could make codes else."""
        return _cipher(settings.SECRET_KEY).encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """As it was; ValidationError where the secret key has changed since."""
        try:
            return _cipher(settings.SECRET_KEY).decrypt(encrypted_text.encode()).decode()
        except InvalidToken:
            raise ValidationError(UNREADABLE, code="unreadable") from None

    def get_totp_issuer(self) -> str:
        """What an authenticator app calls this console."""
        return ISSUER

    def get_public_key_credential_rp_entity(self) -> dict[str, str]:
        """The host that passkeys are for, as browsers see it (Web Authentication, 5.4.2)."""
        host = urlsplit(settings.PUBLIC_URL or "").hostname or split_domain_port(context.request.get_host())[0]
        return {"id": host, "name": ISSUER}

    def get_public_key_credential_user_entity(self, user: AbstractBaseUser) -> dict[str, Any]:
        """Whom a passkey is for, by the name that they type in."""
        return {**super().get_public_key_credential_user_entity(user), "display_name": user.get_username()}


@receiver(authenticator_added)
def _use_up(request: HttpRequest, authenticator: Authenticator, **_details: Any) -> None:
    """The code that an app was set up with opens nothing more (RFC 6238, 5.2)."""
    if authenticator.type == Authenticator.Type.TOTP:
        authenticator.wrap().validate_code(request.POST.get("code", ""))


@receiver(post_delete, sender=Authenticator)
def _take_codes(instance: Authenticator, **_details: Any) -> None:
    """Recovery codes go with the last factor, whoever took it away: else they went on with the next one."""
    if not has_second_factor(instance.user):
        Authenticator.objects.filter(user_id=instance.user_id).delete()


@cache
def _cipher(secret: str) -> Fernet:
    key = HKDF(SHA256(), 32, salt=None, info=b"citadel console second factors").derive(secret.encode())
    return Fernet(base64.urlsafe_b64encode(key))
