"""Budgets, prices, and what has been spent, which the database adds up as audit records are written."""

from decimal import Decimal

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import migrations, models
from django.db.models import Q
from django.db.models.deletion import CASCADE

from apps.orchestration.models.epoch import create_trigger, drop_trigger

MOST_TOKENS, MOST_MONEY = 10**15, 9_000_000
NOTHING = Decimal(0)
NOT_LESS = MinValueValidator(NOTHING)

# In the transaction of the records, and in the order of the rows, so that two workers don't wait for each other.
ADD_UP = """
CREATE FUNCTION gateway_add_spend() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO gateway_spend AS known (holder, day, requests, tokens, money)
    SELECT holder, (at AT TIME ZONE 'UTC')::date AS day, count(*),
           sum(prompt_tokens::bigint + completion_tokens), sum(cost)
    FROM added, unnest(ARRAY[key_id, 'team:' || team]) AS holder
    WHERE holder NOT IN ('', 'team:')
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (holder, day) DO UPDATE SET
        requests = known.requests + excluded.requests,
        tokens = known.tokens + excluded.tokens,
        money = known.money + excluded.money;
    RETURN NULL;
END $$;
CREATE TRIGGER add_spend AFTER INSERT ON audit_record REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION gateway_add_spend();
"""
DROP_ADD_UP = "DROP TRIGGER add_spend ON audit_record; DROP FUNCTION gateway_add_spend();"


def number() -> models.BigAutoField:
    """The column that Django gives each row."""
    return models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


def price(help_text: str) -> models.DecimalField:
    """A column that holds a price."""
    return models.DecimalField(
        max_digits=18, decimal_places=9, default=NOTHING, validators=[NOT_LESS], help_text=help_text
    )


class Migration(migrations.Migration):
    """Nothing is bounded until somebody says so."""

    dependencies = [
        ("gateway", "0010_limits_of_teams_and_tokens"),
        ("audit", "0003_cost"),
        ("orchestration", "0002_raise_epoch"),
    ]

    operations = [
        migrations.CreateModel(
            name="Budget",
            fields=[
                ("id", number()),
                (
                    "period",
                    models.CharField(
                        choices=[("day", "Day"), ("week", "Week"), ("month", "Month"), ("total", "Total")],
                        max_length=8,
                    ),
                ),
                (
                    "tokens",
                    models.BigIntegerField(
                        blank=True, null=True, validators=[MinValueValidator(0), MaxValueValidator(MOST_TOKENS)]
                    ),
                ),
                (
                    "money",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=16,
                        null=True,
                        validators=[NOT_LESS, MaxValueValidator(MOST_MONEY)],
                    ),
                ),
                ("created", models.DateTimeField(auto_now_add=True)),
                (
                    "key",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=CASCADE, related_name="budgets", to="gateway.key"
                    ),
                ),
                (
                    "team",
                    models.ForeignKey(
                        blank=True, null=True, on_delete=CASCADE, related_name="budgets", to="gateway.team"
                    ),
                ),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(fields=["team", "period"], name="gateway_budget_of_a_team_once"),
                    models.UniqueConstraint(fields=["key", "period"], name="gateway_budget_of_a_key_once"),
                    models.CheckConstraint(
                        condition=Q(team=None, key__isnull=False) | Q(key=None, team__isnull=False),
                        name="gateway_budget_of_a_team_or_a_key",
                        violation_error_message="A budget is of a team or of a key: name one of them.",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Warned",
            fields=[
                ("id", number()),
                ("begins", models.DateField()),
                ("share", models.PositiveSmallIntegerField()),
                ("at", models.DateTimeField(auto_now_add=True)),
                (
                    "budget",
                    models.ForeignKey(on_delete=CASCADE, related_name="warned", to="gateway.budget"),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=["budget", "begins", "share"], name="gateway_warned_once")
                ],
            },
        ),
        migrations.CreateModel(
            name="Price",
            fields=[
                ("id", number()),
                ("model", models.CharField(max_length=255, unique=True)),
                ("prompt", price("Of a million prompt tokens.")),
                ("completion", price("Of a million answer tokens.")),
                ("server_second", price("Of each second that a server works for a request.")),
            ],
            options={"ordering": ["model"]},
        ),
        migrations.CreateModel(
            name="Spend",
            fields=[
                ("id", number()),
                (
                    "holder",
                    models.CharField(help_text="A key's id, or `team:` and a team's slug.", max_length=80),
                ),
                ("day", models.DateField()),
                ("requests", models.BigIntegerField()),
                ("tokens", models.BigIntegerField()),
                ("money", models.DecimalField(decimal_places=9, max_digits=24)),
            ],
            options={
                "verbose_name_plural": "spend",
                "constraints": [
                    models.UniqueConstraint(fields=["holder", "day"], name="gateway_spend_of_a_day_once")
                ],
            },
        ),
        migrations.RunSQL(create_trigger("gateway_budget"), drop_trigger("gateway_budget")),
        migrations.RunSQL(create_trigger("gateway_price"), drop_trigger("gateway_price")),
        migrations.RunSQL(ADD_UP, DROP_ADD_UP),
    ]
