"""Django's engine for the console's sessions, which notes whose each is (the setting SESSION_ENGINE)."""

from typing import Any, cast

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db

from apps.gateway.models import Session

LENGTH = 32
"""Characters of the keys that Django makes."""


class SessionStore(db.SessionStore):
    """As it is in the database, read anew by each request: what is gone from there is over."""

    @classmethod
    def get_model_class(cls) -> type[Session]:
        """The rows."""
        return Session

    def _validate_session_key(self, key: str | None) -> bool:
        """Whether the database can have a session of that key: one of those that are made here."""
        return key is not None and len(key) == LENGTH and key.isascii() and key.isalnum()

    def create_model_instance(self, data: dict[str, Any]) -> Session:
        """The row of a session that holds that."""
        row = cast(Session, super().create_model_instance(data))
        row.user_id = data.get(SESSION_KEY)
        return row


def end_all(user_id: int, *, but: str | None = None) -> int:
    """Ends all sessions of an account but the one with that key: at the next request, and within three seconds of what
    is watched. Gives how many there were.
    """
    ended, _ = Session.objects.filter(user_id=user_id).exclude(session_key=but or "").delete()
    return ended
