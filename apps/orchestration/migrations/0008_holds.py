"""For which causes of webhooks a server is draining."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0007_webhooks'),
    ]

    operations = [
        migrations.CreateModel(
            name='Hold',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('cause', models.CharField(blank=True, help_text='Digest of what the reports of one cause share.', max_length=64)),
                ('hook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to='orchestration.hook')),
                ('server', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='holds', to='orchestration.server')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('server', 'hook', 'cause'), name='orchestration_hold_is_one')],
            },
        ),
    ]
