"""What all tests share: one real Citadel a run, clients for it, test servers behind it."""

import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import hypothesis
import pytest
from _pytest.nodeid import NodeId

from tests.fleet.control import Fleet
from tests.instance import Instance, shared
from tests.working_on import working_on

hypothesis.settings.register_profile("citadel", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("citadel")


def _set_up_django() -> None:
    """Lets modules with models be imported. Database and secret are those of the run's Citadel, once it is there."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "citadel.settings"
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # tests change the registry from wherever they are
    nowhere = {"CITADEL_HOME": os.devnull, "CITADEL_SECURITY__SECRET_KEY": secrets.token_hex(32)}
    addresses = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "REDIS_CACHE_URL"), "")
    with mock.patch.dict(os.environ, {**addresses, **nowhere}):
        import django

        django.setup()


_set_up_django()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives each test an id of its own: of those with the same, xdist runs one, and says nothing of the others."""
    for item in items:
        if not item.nodeid.endswith(item.name) and item.parent:  # schemathesis leaves the operation out
            item._id = NodeId.parse(f"{item.parent.nodeid}::{item.name}")
    twice = [identity for identity, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"these tests have no id of their own: {twice[:5]}")


@pytest.fixture(scope="session")
def citadel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """The run's Citadel, with the demo fleet; Django in this process works on its database."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with shared(Path(folder)) as instance, working_on(instance):
        yield instance


@pytest.fixture
def fleet(citadel: Instance) -> Iterator[Callable[..., Fleet]]:
    """Starts test servers and registers them: `fleet("model")`; all are gone after the test."""
    with ExitStack() as stack:

        def start(model: str, *, weight: int = 1, **options: Any) -> Fleet:
            server = stack.enter_context(Fleet.start(models=[model], **options))
            registered = citadel.registered(server.url, [model], kind=options.get("kind", "openai"), weight=weight)
            server.server_id = stack.enter_context(registered)
            return server

        yield start


@pytest.fixture
def model() -> str:
    """A model's name that no other test uses."""
    return f"model-{secrets.token_hex(4)}"


@pytest.fixture
async def http(citadel: Instance) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a key without limits, whose addresses begin at Citadel's own."""
    headers = {"authorization": f"Bearer {citadel.key()}"}
    async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
        yield session
