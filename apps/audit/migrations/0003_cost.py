"""What a request has cost."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Nothing for those that there are: nobody had said what models cost."""

    dependencies = [("audit", "0002_routing")]

    operations = [
        migrations.AddField(
            "record", "cost", models.DecimalField(max_digits=24, decimal_places=9, default=0, db_default=0)
        ),
    ]
