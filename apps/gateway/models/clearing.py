"""What was cleared from the cache."""

from django.db import models


class Clearing(models.Model):
    """Answers for a team and a model that are older than this are found no more; empty names stand for all."""

    team = models.CharField(max_length=64, blank=True)
    model = models.CharField(max_length=255, blank=True)
    number = models.BigIntegerField(help_text="When it was cleared, in microseconds since the epoch.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["team", "model"], name="gateway_clearing_of_each_once")]

    def __str__(self) -> str:
        return f"{self.team or 'all teams'}, {self.model or 'all models'}"
