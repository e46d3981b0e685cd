"""What was cleared from the cache; a new clearing raises the epoch, so that every worker hears of it."""

from django.db import migrations, models

from apps.orchestration.models.epoch import create_trigger, drop_trigger


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0003_allowed_models_are_names'),
        ('orchestration', '0002_raise_epoch'),
    ]

    operations = [
        migrations.CreateModel(
            name='Clearing',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('team', models.CharField(blank=True, max_length=64)),
                ('model', models.CharField(blank=True, max_length=255)),
                ('number', models.BigIntegerField(help_text='When it was cleared, in microseconds since the epoch.')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('team', 'model'), name='gateway_clearing_of_each_once')],
            },
        ),
        migrations.RunSQL(create_trigger('gateway_clearing'), drop_trigger('gateway_clearing')),
    ]
