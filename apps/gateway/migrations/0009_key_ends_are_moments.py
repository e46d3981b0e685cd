"""A key ends at a moment that can be counted with."""

import apps.gateway.models.key
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0008_key_scopes_addresses_rotation_use'),
    ]

    operations = [
        migrations.AlterField(
            model_name='key',
            name='expires',
            field=models.DateTimeField(blank=True, null=True, validators=[apps.gateway.models.key.check_end]),
        ),
    ]
