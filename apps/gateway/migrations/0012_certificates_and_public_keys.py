"""Keys may be proven by a client certificate, and by what a private key has signed."""

from django.db import migrations, models

import apps.gateway.models.key


class Migration(migrations.Migration):
    """Adds columns that are null for all there are: nothing but their secret proves their holders yet."""

    dependencies = [("gateway", "0011_budgets")]

    operations = [
        migrations.AddField(
            "key",
            "certificates",
            models.JSONField(
                blank=True,
                help_text="SHA-256 fingerprints of client certificates that prove its holder, "
                "where a proxy reports them.",
                null=True,
                validators=[apps.gateway.models.key.check_fingerprints],
            ),
        ),
        migrations.AddField(
            "key",
            "public_key",
            models.CharField(
                blank=True,
                help_text="Ed25519 public key of who signs requests by a private key of the own.",
                max_length=200,
                null=True,
                validators=[apps.gateway.models.key.check_public_key],
            ),
        ),
    ]
