"""Keys may be a member's and people viewers of a team. What the columns may hold is said by the program alone."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Changes nothing in the database."""

    dependencies = [("gateway", "0018_warnings_of_bounds")]

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
                    ("owner", "Owner"),
                    ("member", "Member"),
                    ("viewer", "Viewer"),
                ],
                default="developer",
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="membership",
            name="role",
            field=models.CharField(
                choices=[("owner", "Owner"), ("member", "Member"), ("viewer", "Viewer")], default="member", max_length=8
            ),
        ),
    ]
