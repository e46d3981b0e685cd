"""Whether what is known of a model is an operator's word. Nobody knows that of earlier ones: they count as found."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("orchestration", "0012_named_by"),
    ]

    operations = [
        migrations.AddField(
            model_name="servedmodel",
            name="described",
            field=models.BooleanField(
                default=False,
                db_default=False,
                help_text="An operator has said what it is and can do: what its server says only completes that.",
            ),
        ),
    ]
