"""Teams have limits, and tokens a minute are limited too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Adds columns that are null for all there are: nothing is limited by them until somebody says so."""

    dependencies = [("gateway", "0009_key_ends_are_moments")]

    operations = [
        migrations.AddField("key", "tokens_per_minute", models.PositiveIntegerField(blank=True, null=True)),
        migrations.AddField("team", "requests_per_minute", models.PositiveIntegerField(blank=True, null=True)),
        migrations.AddField("team", "tokens_per_minute", models.PositiveIntegerField(blank=True, null=True)),
        migrations.AddField("team", "concurrent", models.PositiveIntegerField(blank=True, null=True)),
    ]
