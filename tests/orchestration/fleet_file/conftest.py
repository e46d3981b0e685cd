"""A registry that is empty at the start of each test."""

import pytest


@pytest.fixture
def fresh(migrated: str) -> str:
    """As a first start leaves it: with its classes, without servers and aliases."""
    from apps.orchestration.models import Alias, Event, ModelClass, Server

    migration = __import__("apps.orchestration.migrations.0005_classes_and_events", fromlist=["CLASSES"])
    for model in (Server, Alias, Event, ModelClass):
        model.objects.all().delete()
    ModelClass.objects.bulk_create(ModelClass(**fields) for fields in migration.CLASSES)
    return migrated
