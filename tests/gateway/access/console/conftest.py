"""A Citadel whose console asks everybody for a second factor, with four workers and an OpenID provider."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.access.console.provider import CLIENT, SECRET, Provider
from tests.gateway.access.console.visitor import Visitor, account
from tests.instance import Instance, running
from tests.working_on import working_on


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    with Provider.start() as started:
        yield started


@pytest.fixture(scope="module")
def guarded(_guarded: Instance) -> Iterator[Instance]:
    """Django in this process works on its database meanwhile."""
    with working_on(_guarded):
        yield _guarded


@pytest.fixture(scope="session")
def _guarded(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Instance]:
    """It runs until the end: between two files that need it, others may have their turn."""
    known: dict[str, Any] = {
        "name": "main",
        "title": "Main",
        "issuer": provider.url,
        "client_id": CLIENT,
        "client_secret": SECRET,
        "roles": {"it-operators": "operator", "it-audit": "auditor"},
    }
    strict = {
        "name": "strict",
        "title": "Strict",
        "acr": ["urn:two", "urn:three"],
        "amr": ["otp", "hwk"],
        "max_age": 300,
    }
    away = {"name": "away", "title": "Away", "issuer": "http://127.0.0.1:9"}
    asked = {
        "CITADEL_DEMO_FLEET": "0",
        "CITADEL_SERVER__WORKERS": "4",
        "CITADEL_SERVER__TRUSTED_PROXIES": "[loopback]",  # each visitor has an address of its own by its word
        "CITADEL_SECURITY__ISSUER_NETWORKS": "[loopback]",
        "CITADEL_CONSOLE__SECOND_FACTOR": "required",
        "CITADEL_CONSOLE__PASSWORD_WORDS": "[Umbrella, Blue Harvest]",
        "CITADEL_CONSOLE__PROVIDERS": json.dumps([known, known | away, known | strict]),
    }
    with running(tmp_path_factory.mktemp("guarded"), asked) as citadel:
        yield citadel


@pytest.fixture
def visitor(guarded: Instance) -> Iterator[Visitor]:
    with Visitor(guarded) as browser:
        yield browser


@pytest.fixture
def name(guarded: Instance) -> Iterator[str]:
    """Of an administrator who has not set up anything yet."""
    with account("admin") as made:
        yield made.username
