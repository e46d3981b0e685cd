"""A role for the keys of servers, which register and send heartbeats and may do nothing else."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0005_key_max_priority"),
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
