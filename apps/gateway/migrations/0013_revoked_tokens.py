"""Tokens that were revoked before their end. They don't raise the epoch: whoever revokes one tells its channel."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Adds a table that is empty until somebody revokes a token."""

    dependencies = [("gateway", "0012_certificates_and_public_keys")]

    operations = [
        migrations.CreateModel(
            name="RevokedToken",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("jti", models.CharField(max_length=32, unique=True)),
                (
                    "key_id",
                    models.CharField(db_index=True, help_text="Of the key that gave it out.", max_length=32),
                ),
                ("ends", models.DateTimeField(db_index=True)),
            ],
        ),
    ]
