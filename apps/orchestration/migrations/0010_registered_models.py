"""Which models only their server's registration has named. Of those that were named before nobody can tell: they stay
until an operator takes them away.
"""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0009_hedge_help'),
    ]

    operations = [
        migrations.AddField(
            model_name='servedmodel',
            name='registered',
            field=models.BooleanField(db_default=False, default=False, editable=False, help_text="Its server's registration alone named it: it goes with the first one that does not."),
        ),
    ]
