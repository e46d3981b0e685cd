"""Records in the console: to read, never to change."""

from django.contrib import admin

from apps.audit.models import Record
from citadel.rows import ReadOnly


@admin.register(Record)
class RecordAdmin(ReadOnly):
    """The list of requests."""

    list_display = ("at", "request_id", "team", "key_id", "door", "model", "server", "status", "outcome", "total_ms")
    list_filter = ("door", "status", "outcome", "cache")
    search_fields = ("=request_id", "=model", "=team")
