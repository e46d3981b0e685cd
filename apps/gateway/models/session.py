"""Sessions of the console, by whose they are."""

from typing import Any

from django.conf import settings
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models


class Session(AbstractBaseSession):
    """Django's, and whose it is: so that people find theirs, and administrators those of an account."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,  # of who only looks at the form
        on_delete=models.CASCADE,
        db_constraint=False,  # one that is written as its account goes opens nothing, and is no error
        related_name="console_sessions",
    )

    class Meta:
        default_permissions = ()

    @classmethod
    def get_session_store_class(cls) -> Any:
        """What reads and writes them."""
        from apps.gateway.access.console.store import SessionStore

        return SessionStore
