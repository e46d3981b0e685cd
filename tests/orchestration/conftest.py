"""Clients of the run's Citadel."""

import aiohttp
import pytest

from tests.gateway.client import Client


@pytest.fixture
async def client(http: aiohttp.ClientSession) -> Client:
    """Asks the run's Citadel with a developer's key without limits."""
    return Client(http)
