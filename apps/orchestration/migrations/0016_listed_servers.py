"""Whether a server's list of models has been read where it is now: one that has none there any more is not well."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0015_holds_keep_their_hook'),
    ]

    operations = [
        migrations.AddField(
            model_name='server',
            name='listed',
            field=models.BooleanField(db_default=False, default=False, editable=False, help_text='Its list of models has been read where it is now.'),
        ),
    ]
