"""Which models only their server's registration has named: of the servers that have registered, all that were named."""

from django.db import migrations, models

SQL = """
UPDATE orchestration_servedmodel m SET registered = true FROM orchestration_server s
WHERE s.id = m.server_id AND m.named AND s.registered_by <> ''
"""


class Migration(migrations.Migration):

    dependencies = [
        ('orchestration', '0009_hedge_help'),
    ]

    operations = [
        migrations.AddField(
            model_name='servedmodel',
            name='registered',
            field=models.BooleanField(db_default=False, default=False, editable=False, help_text="Its server's registration alone named it: it goes with the first one that does not."),
        ),
        migrations.RunSQL(SQL, migrations.RunSQL.noop),
    ]
