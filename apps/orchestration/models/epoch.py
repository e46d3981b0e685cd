"""The number that moves whenever configuration does.

Triggers raise it, in the transaction of the change and whoever makes it: console, API, command line or SQL.
"""

from django.db import models

CHANNEL = "citadel_epoch"


class Epoch(models.Model):
    """One row: the state of everything that workers keep a copy of."""

    number = models.BigIntegerField(default=1)

    def __str__(self) -> str:
        return str(self.number)


# Installed by a migration for each table whose rows the workers keep.
CREATE_FUNCTION = """
CREATE FUNCTION orchestration_raise_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE orchestration_epoch SET number = number + 1;
    PERFORM pg_notify('citadel_epoch', '');
    RETURN NULL;
END $$;
INSERT INTO orchestration_epoch (number) VALUES (1);
"""
DROP_FUNCTION = "DROP FUNCTION orchestration_raise_epoch() CASCADE; DELETE FROM orchestration_epoch;"


def create_trigger(table: str) -> str:
    """SQL that makes changes of `table` raise the epoch."""
    return (
        f"CREATE TRIGGER raise_epoch AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION orchestration_raise_epoch();"
    )


def drop_trigger(table: str) -> str:
    """Undoes `create_trigger`."""
    return f"DROP TRIGGER raise_epoch ON {table};"
