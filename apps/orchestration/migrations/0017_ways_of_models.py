"""Through which Citadels a model is had. Nobody has told that yet: each counts as its server's own until it is asked."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("orchestration", "0016_listed_servers"),
    ]

    operations = [
        migrations.AddField(
            model_name="servedmodel",
            name="ways",
            field=models.JSONField(
                default=list,
                db_default=[],
                blank=True,
                editable=False,
                help_text="Through which other Citadels its server has it, by their marks, where it has told that.",
            ),
        ),
    ]
