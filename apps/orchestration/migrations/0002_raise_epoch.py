"""Whatever changes the fleet raises the epoch, in the same transaction."""

from django.db import migrations

from apps.orchestration.models.epoch import CREATE_FUNCTION, DROP_FUNCTION, create_trigger, drop_trigger

TABLES = ("orchestration_server", "orchestration_servedmodel", "orchestration_alias")


class Migration(migrations.Migration):
    dependencies = [("orchestration", "0001_initial")]
    operations = [
        migrations.RunSQL(CREATE_FUNCTION, DROP_FUNCTION),
        *(migrations.RunSQL(create_trigger(table), drop_trigger(table)) for table in TABLES),
    ]
