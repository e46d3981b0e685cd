"""Webhooks that come in: their types, what they make Citadel do, and what has come."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import connection, models

HOOK_NAME = RegexValidator(r"\A[a-z0-9][a-z0-9_-]{0,63}\Z", "small letters, digits, '_' and '-', at most 64")
MOST_PATHS = 32
LONGEST_PATH = 255


def check_paths(value: Any) -> None:
    """ValidationError unless it is a list of paths such as "labels.server_id"."""
    if not isinstance(value, list) or len(value) > MOST_PATHS or not all(map(_is_word, value)):
        raise ValidationError('a list of paths, such as ["labels.server_id"]')


def check_match(value: Any) -> None:
    """ValidationError unless it says a pattern for each path it names."""
    pairs = [*value, *value.values()] if isinstance(value, dict) else [None]
    if len(pairs) > 2 * MOST_PATHS or not all(map(_is_word, pairs)):
        raise ValidationError('an object of paths and patterns, such as {"labels.severity": "crit*"}')


def _is_word(item: Any) -> bool:
    return isinstance(item, str) and 0 < len(item) <= LONGEST_PATH and "\0" not in item


class Hook(models.Model):
    """A type of webhook, `POST /webhooks/NAME`. Of its own credentials only what checks them is kept."""

    name = models.CharField(max_length=64, unique=True, validators=[HOOK_NAME])
    enabled = models.BooleanField(default=True)
    description = models.CharField(max_length=200, blank=True)
    items = models.CharField(
        max_length=LONGEST_PATH,
        blank=True,
        help_text='Where a list of reports stands, such as "alerts"; empty: it is one.',
    )
    fields = models.JSONField(
        default=list, blank=True, validators=[check_paths], help_text='What each report must have: ["labels"].'
    )
    identity = models.JSONField(
        default=list,
        blank=True,
        validators=[check_paths],
        help_text="Fields that together make a report what it is: a second one with the same changes nothing.",
    )
    cause = models.JSONField(
        default=list,
        blank=True,
        validators=[check_paths],
        help_text="Fields that the reports of one trouble share, from its beginning to its end; "
        "none: it is one a server.",
    )
    token_digest = models.CharField(max_length=64, blank=True, editable=False)
    salt = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ["name"]
        verbose_name = "incoming webhook"

    def __str__(self) -> str:
        return self.name


class HookRule(models.Model):
    """What a report makes Citadel do. The first rule in order that fits it, and says a server, decides."""

    class Action(models.TextChoices):
        """What is done with the server."""

        DRAIN = "drain", "drain"
        ENABLE = "enable", "enable"
        DISABLE = "disable", "disable"
        HEALTHY = "healthy", "call it healthy"
        DEGRADED = "degraded", "call it degraded"
        UNHEALTHY = "unhealthy", "call it unhealthy"
        KEEP = "keep", "only keep the report"

    hook = models.ForeignKey(Hook, on_delete=models.CASCADE, related_name="rules")
    position = models.PositiveSmallIntegerField(default=100, help_text="Rules are tried from the lowest on.")
    match = models.JSONField(
        default=dict, blank=True, validators=[check_match], help_text='All must fit: {"status": "firing"}.'
    )
    server = models.JSONField(
        validators=[check_paths],
        help_text='Where the server\'s id stands, the first that is there: ["labels.server_id"].',
    )
    action = models.CharField(max_length=16, choices=Action.choices)

    class Meta:
        ordering = ["position", "id"]
        verbose_name = "rule"

    def __str__(self) -> str:
        return f"{self.match} → {self.action}"


class Hold(models.Model):
    """Why a server is draining by a webhook's word: one of its causes, such as an alert that fires. What drains by an
    operator's word has none.
    """

    server = models.ForeignKey("orchestration.Server", on_delete=models.CASCADE, related_name="holds")
    hook = models.ForeignKey(Hook, on_delete=models.PROTECT)  # without it no report could enable the server any more
    cause = models.CharField(max_length=64, blank=True, help_text="Digest of what the reports of one cause share.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["server", "hook", "cause"], name="orchestration_hold_is_one")]

    def __str__(self) -> str:
        return f"{self.hook} holds {self.server}"


class HookMark(models.Model):
    """What has been acted upon already: the digest of a message's id, or of what identifies a report. `at` is when it
    came last.
    """

    hook = models.ForeignKey(Hook, on_delete=models.CASCADE)
    digest = models.CharField(max_length=64)
    at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["hook", "digest"], name="orchestration_hook_acts_once")]

    def __str__(self) -> str:
        return self.digest

    @classmethod
    def take(cls, hook: Hook, digest: str) -> bool:
        """Marks it; gives whether it was not yet. Who else does so at the same time waits for this transaction.

        What is marked again lasts anew: as long as an alert fires it is repeated, and is to act once.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO orchestration_hookmark (hook_id, digest, at) VALUES (%s, %s, now()) "
                "ON CONFLICT (hook_id, digest) DO UPDATE SET at = now() RETURNING xmax = 0",
                (hook.pk, digest),
            )
            [fresh] = cursor.fetchone()
            return bool(fresh)


class ReceivedWebhook(models.Model):
    """One delivery that came in and was believed."""

    hook = models.ForeignKey(Hook, on_delete=models.CASCADE, related_name="received")
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    sender = models.CharField(max_length=64, help_text="The id of the key, or how else it was proved.")
    message_id = models.CharField(max_length=255, blank=True)
    outcome = models.CharField(max_length=16)
    actions = models.JSONField(default=list)
    body = models.JSONField(null=True, help_text="What came, where it was not too large to keep.")

    class Meta:
        ordering = ["-id"]
        verbose_name = "received webhook"

    def __str__(self) -> str:
        return f"{self.hook} {self.pk}"
