"""What all tests share: one real Citadel a run, clients for it, test servers behind it."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fleet.control import Fleet
from tests.instance import Instance, shared


@pytest.fixture(scope="session")
def citadel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """The run's Citadel, with the demo fleet; Django in this process works on its database."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with shared(Path(folder)) as instance:
        _set_up_django(instance)
        yield instance


def _set_up_django(instance: Instance) -> None:
    os.environ["CITADEL_HOME"] = str(instance.home)
    os.environ["DJANGO_SETTINGS_MODULE"] = "citadel.settings"
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # tests change the registry from wherever they are
    import django

    django.setup()


@pytest.fixture
def fleet(citadel: Instance) -> Iterator[Callable[..., Fleet]]:
    """Starts test servers and registers them: `fleet("model")`; all are gone after the test."""
    started: list[tuple[Fleet, str]] = []

    def start(model: str, *, weight: int = 1, **options: Any) -> Fleet:
        server = Fleet.start(models=[model], **options)
        server.open()
        server.server_id = citadel.register(server.url, [model], kind=options.get("kind", "openai"), weight=weight)
        started.append((server, server.server_id))
        return server

    yield start
    for server, server_id in started:
        citadel.remove(server_id)
        server.close()


@pytest.fixture
def model() -> str:
    """A model's name that no other test uses."""
    import secrets

    return f"model-{secrets.token_hex(4)}"


@pytest.fixture
async def http(citadel: Instance) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a key without limits, whose addresses begin at Citadel's own."""
    headers = {"authorization": f"Bearer {citadel.key()}"}
    async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
        yield session
