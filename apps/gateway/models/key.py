"""A team's API key: only a keyed digest of it is kept."""

from django.core.exceptions import ValidationError
from django.db import models

from apps.gateway.models.team import Team


def check_names(value: object) -> None:
    """ValidationError unless it is a list of names."""
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValidationError('must be a list of names, such as ["llama3.2"]')


class Key(models.Model):
    """One API key. `key_id` is public and stands in logs; a limit of 0 is none, of null the configured default."""

    class Role(models.TextChoices):
        """What the key's holder is."""

        ADMIN = "admin"
        OPERATOR = "operator"
        SERVER = "server"
        AUDITOR = "auditor"
        DEVELOPER = "developer"

    class Priority(models.TextChoices):
        """What a request may claim in waiting rooms, the lowest first."""

        LOW = "low"
        NORMAL = "normal"
        HIGH = "high"
        CRITICAL = "critical"

    key_id = models.CharField(max_length=32, unique=True)
    digest = models.BinaryField(max_length=32, unique=True)
    name = models.CharField(max_length=128)
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="keys")
    role = models.CharField(max_length=16, choices=Role.choices, default=Role.DEVELOPER)
    allowed_models = models.JSONField(
        null=True, blank=True, validators=[check_names], help_text="Names of the models it may use; empty for all."
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    concurrent = models.PositiveIntegerField(null=True, blank=True)
    max_priority = models.CharField(
        max_length=8,
        choices=Priority,
        default=Priority.HIGH,
        db_default=Priority.HIGH,
        help_text="The highest that its requests may claim; one that asks for more is lowered to it.",
    )
    created = models.DateTimeField(auto_now_add=True)
    expires = models.DateTimeField(null=True, blank=True)
    revoked = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created"]

    def __str__(self) -> str:
        return f"{self.team}/{self.name} ({self.key_id})"
