"""Whose word a model is, in one field: an operator's, a registration's, or nobody's where it was found."""

from typing import Any

from django.db import migrations, models


LOCK = """
LOCK TABLE orchestration_server, orchestration_epoch IN EXCLUSIVE MODE;
LOCK TABLE orchestration_servedmodel IN ACCESS EXCLUSIVE MODE;
"""
"""In the order of those who register at that time: the server's row, by its trigger the epoch's, then the models."""


def say_by_whom(apps: Any, _schema_editor: Any) -> None:
    """What somebody has named is an operator's unless a registration alone has."""
    named = apps.get_model("orchestration", "ServedModel").objects.filter(named=True)
    named.filter(registered=False).update(named_by="operator")
    named.filter(registered=True).update(named_by="registration")


def say_whether(apps: Any, _schema_editor: Any) -> None:
    """The way back. No row is updated twice: its table could not be altered then."""
    rows = apps.get_model("orchestration", "ServedModel").objects
    rows.filter(named_by="operator").update(named=True)
    rows.filter(named_by="registration").update(named=True, registered=True)


class Migration(migrations.Migration):
    dependencies = [
        ("orchestration", "0011_class_caching"),
    ]

    operations = [
        migrations.RunSQL(LOCK, migrations.RunSQL.noop),
        migrations.AddField(
            model_name="servedmodel",
            name="named_by",
            field=models.CharField(
                blank=True,
                choices=[("registration", "Registration"), ("operator", "Operator")],
                default="",
                db_default="",
                help_text="Who named it: it stays though its server does not list it, and what a registration has "
                "named until one no longer does. Empty: it was found there.",
                max_length=12,
            ),
        ),
        migrations.RunPython(say_by_whom, say_whether),
        migrations.RemoveField(model_name="servedmodel", name="named"),
        migrations.RemoveField(model_name="servedmodel", name="registered"),
        migrations.RunSQL(migrations.RunSQL.noop, LOCK),
    ]
