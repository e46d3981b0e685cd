"""Classes whose models' chats are cached even where they can't be repeated."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0010_registered_models'),
    ]

    operations = [
        migrations.AddField(
            model_name='modelclass',
            name='cache_chat',
            field=models.BooleanField(db_default=False, default=False, help_text='Chats and completions are cached that have neither a seed nor temperature 0, too.'),
        ),
    ]
