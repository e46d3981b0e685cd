"""A database of its own: what is in the registry of the run's Citadel is other tests' too."""

import secrets
from collections.abc import Iterator

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import make_conninfo

from citadel.settings import database
from tests.instance import Instance


@pytest.fixture(scope="module")
def migrated(citadel: Instance) -> Iterator[str]:
    """Its address; Django in this process works on it while a module's tests run."""
    name, before = f"fleet_{secrets.token_hex(4)}", settings.DATABASES
    address = make_conninfo(citadel.database_url, dbname=name)
    with psycopg.connect(citadel.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        _work_on({"default": database(address)})
        try:
            call_command("migrate", verbosity=0)
            yield address
        finally:
            _work_on(before)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _work_on(databases: dict[str, dict[str, object]]) -> None:
    connections["default"].close()
    settings.DATABASES = databases
    connections.settings = connections.configure_settings(databases)
    del connections["default"]


@pytest.fixture
def fresh(migrated: str) -> str:
    """As a first start leaves it: with its classes, without servers and aliases."""
    from apps.orchestration.models import Alias, Event, ModelClass, Server

    migration = __import__("apps.orchestration.migrations.0005_classes_and_events", fromlist=["CLASSES"])
    for model in (Server, Alias, Event, ModelClass):
        model.objects.all().delete()
    ModelClass.objects.bulk_create(ModelClass(**fields) for fields in migration.CLASSES)
    return migrated
