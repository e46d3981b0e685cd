"""Clients of the run's Citadel."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

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
