"""Keys that operate some servers alone."""

from django.db import migrations, models

import apps.gateway.models.key


class Migration(migrations.Migration):
    """A column that restricts nothing where it is empty, as it is for the keys that there are."""

    dependencies = [("gateway", "0014_members_of_teams")]

    operations = [
        migrations.AddField(
            model_name="key",
            name="servers",
            field=models.JSONField(
                blank=True,
                help_text="Ids of the servers that it may register and operate, where its role lets it; empty for all.",
                null=True,
                validators=[apps.gateway.models.key.check_names],
            ),
        ),
    ]
