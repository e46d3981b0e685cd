"""What is kept of one request."""

from django.db import models


class Record(models.Model):
    """One request: who asked for what, which server answered, how it ended and what it cost. Never edited."""

    request_id = models.CharField(max_length=128, db_index=True)
    at = models.DateTimeField(db_index=True)
    team = models.CharField(max_length=64)
    key_id = models.CharField(max_length=32)
    door = models.CharField(max_length=32)
    model = models.CharField(max_length=255)
    server = models.CharField(max_length=64)
    attempts = models.JSONField(default=list)
    routing = models.JSONField(null=True, blank=True)
    status = models.SmallIntegerField()
    outcome = models.CharField(max_length=48)
    stream = models.BooleanField()
    cache = models.CharField(max_length=16)
    prompt_tokens = models.IntegerField()
    completion_tokens = models.IntegerField()
    request_bytes = models.IntegerField()
    answer_bytes = models.BigIntegerField()
    cost = models.DecimalField(max_digits=24, decimal_places=9, default=0, db_default=0)
    first_byte_ms = models.FloatField(null=True)
    total_ms = models.FloatField()

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.request_id} {self.outcome}"

    def save(self, *args: object, **kwargs: object) -> None:
        """Records are written by the recorder alone."""
        raise TypeError("audit records are written by the recorder and never changed")
