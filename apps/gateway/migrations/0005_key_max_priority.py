"""The highest priority that a key's requests may claim."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0004_clearings'),
    ]

    operations = [
        migrations.AddField(
            model_name='key',
            name='max_priority',
            field=models.CharField(choices=[('low', 'Low'), ('normal', 'Normal'), ('high', 'High'), ('critical', 'Critical')], db_default='critical', default='critical', help_text='The highest that its requests may claim; one that asks for more is lowered to it.', max_length=8),
        ),
    ]
