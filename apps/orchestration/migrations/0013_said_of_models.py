"""What of a model is an operator's word. Nobody knows that of what was said earlier: it counts as found."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("orchestration", "0012_named_by"),
    ]

    operations = [
        migrations.AddField(
            model_name="servedmodel",
            name="said",
            field=models.JSONField(
                default=list,
                db_default=[],
                blank=True,
                help_text="What of it operators have said, by the fields' names: in that its server changes nothing.",
            ),
        ),
    ]
