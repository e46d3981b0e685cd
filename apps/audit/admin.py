"""Records in the console: to read, never to change."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from apps.audit.models import Record


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


@admin.register(Record)
class RecordAdmin(ReadOnly):
    """The list of requests."""

    list_display = ("at", "request_id", "team", "key_id", "door", "model", "server", "status", "outcome", "total_ms")
    list_filter = ("door", "status", "outcome", "cache")
    search_fields = ("=request_id", "=model", "=team")
