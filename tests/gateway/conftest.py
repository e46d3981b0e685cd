"""Clients of the run's Citadel, and a second Citadel for what must be seen under other settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.client import Client
from tests.gateway.elsewhere import Elsewhere
from tests.instance import shared

SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    "CITADEL_CACHE__CHAT_TTL": "1",
    "CITADEL_CACHE__EMBEDDINGS_TTL": "1",
    "CITADEL_SECURITY__CORS_ORIGINS": "[https://page.example, https://other.example]",
    "CITADEL_SECURITY__METRICS_NETWORKS": "[loopback]",
    "CITADEL_ROUTING__FIRST_BYTE_TIMEOUT": "2",
    "CITADEL_TIMEOUTS__CLIENT": "1",
    "CITADEL_TIMEOUTS__STREAM": "5",
    "CITADEL_TIMEOUTS__STREAM_IDLE": "1",
    "CITADEL_TIMEOUTS__STREAM_SILENCE": "0.3",
    "SSL_CERT_FILE": str(Path(__file__).parent / "inference" / "tls" / "certificate.pem"),
}


@pytest.fixture
async def client(http: aiohttp.ClientSession) -> Client:
    """Asks the run's Citadel with a key without limits."""
    return Client(http)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A Citadel with `SETTINGS` for all test processes of the run, and a server there for this one."""
    base = tmp_path_factory.getbasetemp()
    folder = Path(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "elsewhere"
    folder.mkdir(exist_ok=True)
    with shared(folder, SETTINGS) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere
