"""New keys may claim `high` unless it is said; those that there are stay what they are."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0005_key_max_priority'),
    ]

    operations = [
        migrations.AlterField(
            model_name='key',
            name='max_priority',
            field=models.CharField(choices=[('low', 'Low'), ('normal', 'Normal'), ('high', 'High'), ('critical', 'Critical')], db_default='high', default='high', help_text='The highest that its requests may claim; one that asks for more is lowered to it.', max_length=8),
        ),
    ]
