"""Words alone: from when on a second server is asked for its p95."""

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0008_holds'),
    ]

    operations = [
        migrations.AlterField(
            model_name='modelclass',
            name='hedge_ms',
            field=models.PositiveIntegerField(blank=True, help_text='Ask a second server when the first has not answered for so long; 0: for its p95, 20 ms at least.', null=True, validators=[django.core.validators.MaxValueValidator(600000)]),
        ),
    ]
