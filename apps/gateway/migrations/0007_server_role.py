"""A role for the keys of servers, which register and send heartbeats and may do nothing else."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0006_new_keys_claim_high"),
    ]

    operations = [
        migrations.AlterField(
            model_name="key",
            name="role",
            field=models.CharField(
                choices=[
                    ("admin", "Admin"),
                    ("operator", "Operator"),
                    ("server", "Server"),
                    ("auditor", "Auditor"),
                    ("developer", "Developer"),
                ],
                default="developer",
                max_length=16,
            ),
        ),
    ]
