"""What keys and teams may spend in a period, what models cost, and what has been spent."""

from decimal import Decimal

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from apps.gateway.models.key import Key
from apps.gateway.models.team import Team
from citadel.caller import MOST_MONEY, MOST_TOKENS, plain_name

NOTHING = Decimal(0)
NOT_LESS = MinValueValidator(NOTHING)


class Budget(models.Model):
    """What a key, or all keys of a team together, may spend in each period of the calendar (UTC, weeks from Monday).

    A bound of null is none; of 0, nothing may be spent.
    """

    class Period(models.TextChoices):
        """How long a budget lasts before it begins anew."""

        DAY = "day"
        WEEK = "week"
        MONTH = "month"
        TOTAL = "total"

    team = models.ForeignKey(Team, on_delete=models.CASCADE, null=True, blank=True, related_name="budgets")
    key = models.ForeignKey(Key, on_delete=models.CASCADE, null=True, blank=True, related_name="budgets")
    period = models.CharField(max_length=8, choices=Period)
    tokens = models.BigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(0), MaxValueValidator(MOST_TOKENS)]
    )
    money = models.DecimalField(
        null=True, blank=True, max_digits=16, decimal_places=9, validators=[NOT_LESS, MaxValueValidator(MOST_MONEY)]
    )
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["team", "period"], name="gateway_budget_of_a_team_once"),
            models.UniqueConstraint(fields=["key", "period"], name="gateway_budget_of_a_key_once"),
            models.CheckConstraint(
                condition=Q(team=None, key__isnull=False) | Q(key=None, team__isnull=False),
                name="gateway_budget_of_a_team_or_a_key",
                violation_error_message="A budget is of a team or of a key: name one of them.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.holder}, {self.period}"

    def clean(self) -> None:
        """ValidationError unless it bounds something."""
        if self.tokens is None and self.money is None:
            raise ValidationError("A budget bounds tokens, money or both: name one of them.")

    @property
    def holder(self) -> str:
        """Under which it is counted."""
        return self.key.key_id if self.key else f"team:{self.team}"


class Warned(models.Model):
    """Who has been told that so much (hundredths) of a budget's tokens, or of its money, is spent in the period that
    begins with that day. That is told again of a higher bound alone.
    """

    budget = models.ForeignKey(Budget, on_delete=models.CASCADE, related_name="warned")
    begins = models.DateField()
    unit = models.CharField(max_length=8)
    share = models.PositiveSmallIntegerField()
    bound = models.BigIntegerField(help_text="The highest that was told of; money in billionths.")
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["budget", "begins", "unit", "share"], name="gateway_warned_once_of_a_unit"),
        ]

    def __str__(self) -> str:
        return f"{self.budget}: {self.share} % of {self.unit}"


class Price(models.Model):
    """What a model costs: tokens as providers sell them, or the time that a server of one's own works for it."""

    model = models.CharField(max_length=255, unique=True)
    prompt = models.DecimalField(
        max_digits=18, decimal_places=9, default=NOTHING, validators=[NOT_LESS], help_text="Of a million prompt tokens."
    )
    completion = models.DecimalField(
        max_digits=18, decimal_places=9, default=NOTHING, validators=[NOT_LESS], help_text="Of a million answer tokens."
    )
    server_second = models.DecimalField(
        max_digits=18,
        decimal_places=9,
        default=NOTHING,
        validators=[NOT_LESS],
        help_text="Of each second that a server works for a request.",
    )

    class Meta:
        ordering = ["model"]

    def __str__(self) -> str:
        return self.model

    def clean(self) -> None:
        """Keeps the name without what Ollama says where nobody says a tag; ValidationError where nothing is left."""
        self.model = plain_name(self.model)
        if not self.model:
            raise ValidationError({"model": "A tag alone is no name."})


class Spend(models.Model):
    """What a key, or a team, has used on one day (UTC). Added up from the audit records as they are written."""

    holder = models.CharField(max_length=80, help_text="A key's id, or `team:` and a team's slug.")
    day = models.DateField()
    requests = models.BigIntegerField()
    tokens = models.BigIntegerField()
    money = models.DecimalField(max_digits=24, decimal_places=9)

    class Meta:
        verbose_name_plural = "spend"
        constraints = [models.UniqueConstraint(fields=["holder", "day"], name="gateway_spend_of_a_day_once")]

    def __str__(self) -> str:
        return f"{self.holder}, {self.day}"
