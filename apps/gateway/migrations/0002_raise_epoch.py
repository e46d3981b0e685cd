"""Whatever changes teams and keys raises the epoch, in the same transaction."""

from django.db import migrations

from apps.orchestration.models.epoch import create_trigger, drop_trigger

TABLES = ("gateway_team", "gateway_key")


class Migration(migrations.Migration):
    dependencies = [("gateway", "0001_initial"), ("orchestration", "0002_raise_epoch")]
    operations = [migrations.RunSQL(create_trigger(table), drop_trigger(table)) for table in TABLES]
