"""The models are those that the migrations make, and each migration says what it does."""

import io
import re

import pytest
from django.core.management import call_command

from tests.house.modules import ROOT
from tests.instance import Instance


def test_the_migrations_make_the_models(citadel: Instance) -> None:
    told = io.StringIO()
    try:
        call_command("makemigrations", check_changes=True, dry_run=True, stdout=told)
    except SystemExit:
        pytest.fail(f"models have changed without a migration:\n{told.getvalue()}")


def test_each_migration_is_named_after_what_it_does() -> None:
    names = [path.stem for path in ROOT.glob("apps/*/migrations/*.py") if path.stem != "__init__"]
    assert names
    for name in names:
        assert re.fullmatch(r"\d{4}_[a-z]+(_[a-z]+)*", name)
        assert "auto" not in name.split("_")
