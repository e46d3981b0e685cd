"""Where the console's messages wait for the next page, in a cookie that is called as its others are."""

from django.conf import settings
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.fallback import FallbackStorage
from django.contrib.messages.storage.session import SessionStorage


class Cookie(CookieStorage):
    """Django's, under a name that browsers hold to what it says."""

    @property
    def cookie_name(self) -> str:  # type: ignore[override]  # which settings decide that are not there yet
        """With the prefix that all of the console's cookies have."""
        return f"{settings.COOKIE_PREFIX}messages"


class Notices(FallbackStorage):
    """Django's usual way: a cookie, and the session for what that has no room for."""

    storage_classes = (Cookie, SessionStorage)
