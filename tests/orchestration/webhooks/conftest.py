"""A client for webhooks, and servers that they are about."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import aiohttp
import pytest

from tests.gateway.client import Client
from tests.instance import ROOT, SETTINGS, Instance


@pytest.fixture
async def client(http: aiohttp.ClientSession) -> Client:
    """Asks without any key unless it is told one."""
    http.headers.pop("authorization")
    return Client(http)


@pytest.fixture
def server(citadel: Instance) -> Iterator[str]:
    """A server of the registry, by its id; nothing listens there."""
    with citadel.registered("http://127.0.0.1:9", [f"model-{secrets.token_hex(4)}"]) as server_id:
        yield server_id


@pytest.fixture
def state(citadel: Instance) -> Callable[[str], str]:
    """What the operator says of a server."""
    from apps.orchestration.models import Server

    return lambda server_id: Server.objects.get(server_id=server_id).state


@pytest.fixture
def told(citadel: Instance) -> Callable[[str], list[str]]:
    """The types of the events of a server, in order."""
    from apps.orchestration.models import Event

    return lambda server_id: list(
        Event.objects.filter(server_id=server_id).order_by("id").values_list("type", flat=True)
    )


@pytest.fixture(scope="session")
def sending(citadel: Instance) -> Iterator[None]:
    """Celery's worker and beat for the run's Citadel, where it has not started its own."""
    if (citadel.home / "run" / "worker.pid").exists():
        yield
        return
    environment = {**os.environ, **SETTINGS, "CITADEL_HOME": str(citadel.home)}
    schedule = citadel.home / "run" / "beat-schedule"
    commands = (
        ("worker", "-Q", "work", "--pool", "threads", "--concurrency", "2"),
        ("beat", "--schedule", str(schedule)),
    )
    with ExitStack() as stack:
        for words in commands:
            output = stack.enter_context((citadel.home / "logs" / f"test-{words[0]}.log").open("wb"))
            command = [sys.executable, "-m", "celery", "-A", "citadel.celery", *words]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        yield
