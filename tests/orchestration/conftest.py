"""Clients of the run's Citadel, and a database of its own: what is in the run's registry is other tests' too."""

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import make_conninfo

from citadel.settings import database
from tests.gateway.client import Client
from tests.instance import Instance


@pytest.fixture
async def client(http: aiohttp.ClientSession) -> Client:
    """Asks the run's Citadel with a developer's key without limits."""
    return Client(http)


@pytest.fixture
async def operator(citadel: Instance) -> AsyncIterator[Client]:
    """Asks with the key of a server's operator."""
    headers = {"authorization": f"Bearer {citadel.key(role='operator')}"}
    async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
        yield Client(session)


@pytest.fixture
def server_id(citadel: Instance) -> Any:
    """A name for a server, which is out at the end."""
    name = f"r-{secrets.token_hex(4)}"
    yield name
    citadel.remove(name)


@pytest.fixture(scope="module")
def migrated(citadel: Instance) -> Iterator[str]:
    """Its address; Django in this process works on it while a module's tests run."""
    name, before = f"registry_{secrets.token_hex(4)}", settings.DATABASES
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
