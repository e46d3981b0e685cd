"""Classes of models: the routing rule that a kind of model has, whichever server holds it."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, RegexValidator
from django.db import models

from apps.orchestration.models.server import check_labels

CLASS_NAME = RegexValidator(r"\A[a-z0-9][a-z0-9_-]{0,31}\Z", "small letters, digits, '_' and '-', at most 32")
MOST_SHARE = 1000


def check_list(value: Any) -> None:
    """ValidationError unless it is a list of words."""
    if not isinstance(value, list):
        raise ValidationError("a list of words")
    check_labels(value)


def check_shares(value: Any) -> None:
    """ValidationError unless it says a positive whole number for each server it names."""
    if not isinstance(value, dict):
        raise ValidationError('an object like {"server-1": 50, "server-2": 50}')
    check_labels(value)
    if not all(type(share) is int and 1 <= share <= MOST_SHARE for share in value.values()):
        raise ValidationError(f"shares are whole numbers from 1 to {MOST_SHARE}")


class ModelClass(models.Model):
    """How requests for a class of models find their server. A model's class is the first in order that fits it."""

    class Strategy(models.TextChoices):
        """How the servers that may serve are ordered."""

        DEFAULT = "", "as configured"
        ROUND_ROBIN = "weighted_round_robin", "smooth weighted round robin"
        LEAST_BUSY = "least_busy", "least busy"
        PEAK_EWMA = "peak_ewma", "fastest of two choices"
        AFFINITY = "affinity", "same conversation, same server"

    name = models.CharField(max_length=32, unique=True, validators=[CLASS_NAME])
    position = models.PositiveSmallIntegerField(default=100, help_text="Classes are tried from the lowest on.")
    patterns = models.JSONField(
        default=list, blank=True, validators=[check_list], help_text='Of models, such as ["phi3*", "*embed*"].'
    )
    capability = models.CharField(
        max_length=64,
        blank=True,
        help_text="Servers that say this of themselves are the class's own, and their models in it.",
    )
    servers = models.JSONField(
        default=list, blank=True, validators=[check_list], help_text="Ids of the class's own servers; empty: all."
    )
    fallback = models.BooleanField(default=True, help_text="Others may serve when none of its own servers can.")
    shares = models.JSONField(
        default=dict, blank=True, validators=[check_shares], help_text='Instead of weights: {"server-1": 50}.'
    )
    equal_shares = models.BooleanField(default=False, help_text="All servers alike, whatever their weights.")
    strategy = models.CharField(max_length=24, choices=Strategy.choices, default=Strategy.DEFAULT, blank=True)
    hedge_ms = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(600_000)],
        help_text="Ask a second server when the first has not answered for so long; 0: for its p95, 20 ms at least.",
    )
    cache_chat = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Chats and completions are cached that have neither a seed nor temperature 0, too.",
    )

    class Meta:
        ordering = ["position", "name"]
        verbose_name = "model class"
        verbose_name_plural = "model classes"

    def __str__(self) -> str:
        return self.name
