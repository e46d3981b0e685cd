"""What happened to the fleet."""

from django.db import models


class Event(models.Model):
    """One event. Written by `events.py` alone and never changed."""

    type = models.CharField(max_length=40)
    server_id = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField()
    data = models.JSONField(default=dict)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["type", "-id"], name="orchestration_event_by_type"),
            models.Index(fields=["server_id", "-id"], name="orchestration_event_by_server"),
            models.Index(fields=["at"], name="orchestration_event_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.server_id}"
