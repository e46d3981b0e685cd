"""A Citadel of two workers behind a proxy that reports client certificates."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import pytest

from tests.gateway.client import Client
from tests.instance import Instance, running

PROXY, ANYBODY = "127.0.0.2", "127.0.0.1"
"""From where requests come: this machine has all of these addresses."""
SCRAPER = "198.51.100.9"
"""Who needs no key for metrics, as the proxy tells."""
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": "2",
    "CITADEL_SERVER__TRUSTED_PROXIES": f"[{PROXY}/32]",
    "CITADEL_CERTIFICATES__HEADER": "Client-Cert",
    "CITADEL_SECURITY__METRICS_NETWORKS": f"[{SCRAPER}/32]",
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
}

Coming = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """It, with an administrator's key."""
    with running(tmp_path_factory.mktemp("proxied"), SETTINGS) as citadel:
        yield citadel


@pytest.fixture
def coming(proxied: Instance) -> Coming:
    """Clients of it that come from an address: each request on a connection of its own, and so with any worker."""

    @asynccontextmanager
    async def come(address: str = ANYBODY) -> AsyncIterator[Client]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True, limit=0)
        async with aiohttp.ClientSession(proxied.url, connector=connector) as session:
            yield Client(session)

    return come
