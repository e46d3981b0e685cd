"""Rows in the console of two kinds: with columns that nobody is shown, and those that nobody changes."""

from collections.abc import Collection
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.http import HttpRequest

SHOWN_AT_ONCE = 5
"""Messages with secrets: they go by a cookie, and what that has no room for Django would keep in the database."""


class Discreet(admin.ModelAdmin):
    """Rows with columns that nobody is shown."""

    secrets: ClassVar[Collection[str]] = ()
    """These columns, and fields of the form that are about them."""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """Nobody filters by them either: by `…__startswith` a list would tell them letter by letter. Of other tables
        Django lets nobody filter by what is no filter of the list.
        """
        return lookup.partition(LOOKUP_SEP)[0] not in self.secrets and super().lookup_allowed(lookup, value, request)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> Any:
        """Without them for who may only look: what is not typed in would be shown as it is."""
        fields = super().get_fields(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fields
        return [name for name in fields if name not in self.secrets]

    def too_many(self, request: HttpRequest, rows: QuerySet[Any]) -> bool:
        """Whether new secrets of more rows are asked for than one page shows, which is told then."""
        if rows.count() <= SHOWN_AT_ONCE:
            return False
        messages.error(
            request, f"Secrets are shown once, of at most {SHOWN_AT_ONCE} rows. Nothing is done: choose fewer."
        )
        return True


class ReadOnly(admin.ModelAdmin):
    """What is written by the program alone."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nobody adds any."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody edits any."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """They end by their age."""
        return False
