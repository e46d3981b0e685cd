"""People of the console who operate some servers alone."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import apps.gateway.models.key


class Migration(migrations.Migration):
    """Adds a table that restricts nobody until an administrator assigns somebody to servers."""

    dependencies = [("gateway", "0015_servers_of_keys"), migrations.swappable_dependency(settings.AUTH_USER_MODEL)]

    operations = [
        migrations.CreateModel(
            name="Assignment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "servers",
                    models.JSONField(
                        help_text="Ids of servers, also of some that are yet to come.",
                        validators=[apps.gateway.models.key.check_names],
                    ),
                ),
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="assignment",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={"ordering": ["user__username"]},
        ),
    ]
