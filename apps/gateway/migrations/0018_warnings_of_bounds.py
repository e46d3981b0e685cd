"""Warnings of budgets are kept by unit, and with the bound that they were told of."""

from django.db import migrations, models
from django.db.models.deletion import CASCADE


class Migration(migrations.Migration):
    """Makes the table anew: of which bound an old row was is not known, and one warning too many is better than none."""

    dependencies = [("gateway", "0017_sessions_of_people")]

    operations = [
        migrations.DeleteModel(name="Warned"),
        migrations.CreateModel(
            name="Warned",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("begins", models.DateField()),
                ("unit", models.CharField(max_length=8)),
                ("share", models.PositiveSmallIntegerField()),
                ("bound", models.BigIntegerField(help_text="The highest that was told of; money in billionths.")),
                ("at", models.DateTimeField(auto_now_add=True)),
                ("budget", models.ForeignKey(on_delete=CASCADE, related_name="warned", to="gateway.budget")),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=["budget", "begins", "unit", "share"], name="gateway_warned_once_of_a_unit"
                    )
                ],
            },
        ),
    ]
