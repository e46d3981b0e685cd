"""Keys may be restricted to permissions and addresses, have a former secret for a while, and tell when they were used."""

import apps.gateway.models.key
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('gateway', '0007_server_role'),
    ]

    operations = [
        migrations.CreateModel(
            name='KeyUse',
            fields=[
                ('key', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='use', serialize=False, to='gateway.key')),
                ('last_used', models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name='key',
            name='addresses',
            field=models.JSONField(blank=True, help_text='Addresses and networks from which it may be used; empty for anywhere.', null=True, validators=[apps.gateway.models.key.check_addresses]),
        ),
        migrations.AddField(
            model_name='key',
            name='former_digest',
            field=models.BinaryField(max_length=32, null=True, unique=True),
        ),
        migrations.AddField(
            model_name='key',
            name='former_until',
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name='key',
            name='scopes',
            field=models.JSONField(blank=True, help_text='Permissions that it has at most; empty for all of its role.', null=True, validators=[apps.gateway.models.key.check_scopes]),
        ),
        migrations.AlterField(
            model_name='key',
            name='role',
            field=models.CharField(choices=[('admin', 'Admin'), ('operator', 'Operator'), ('server', 'Server'), ('auditor', 'Auditor'), ('developer', 'Developer'), ('owner', 'Owner'), ('viewer', 'Viewer')], default='developer', max_length=16),
        ),
    ]
