"""A type of webhook for which a server drains is not deleted: no report could enable the server any more."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0014_operate_server'),
    ]

    operations = [
        migrations.AlterField(
            model_name='hold',
            name='hook',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, to='orchestration.hook'),
        ),
    ]
