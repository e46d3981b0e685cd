"""What every case has: its invariants, a client, test servers that are registered for it alone."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.faults.client import Client, asking
from tests.faults.invariants import Case, checked
from tests.fleet.control import Fleet
from tests.instance import Instance

Servers = Callable[..., Fleet]


@pytest.fixture(autouse=True)
def case(citadel: Instance) -> Iterator[Case]:
    """The case; what must hold after it is checked when its clients and servers are gone."""
    with checked(citadel, f"fault-{secrets.token_hex(6)}") as case:
        yield case


@pytest.fixture
def servers(case: Case, fleet: Servers) -> Servers:
    """Starts test servers of the case: `servers(model)`."""

    def start(model: str, **options: Any) -> Fleet:
        server = fleet(model, **options)
        case.servers.append(server)
        return server

    return start


@pytest.fixture
async def client(case: Case) -> AsyncIterator[Client]:
    """A client with a key of its own whose slots are counted."""
    async with asking(case) as client:
        yield client


class Pair:
    """Two running test servers for many cases: the first is asked first, the second when that fails."""

    def __init__(self, case: Case, first: Fleet, second: Fleet, model: str) -> None:
        self.case = case
        self.first = first
        self.second = second
        self.model = model


@pytest.fixture(scope="module")
def two_processes(citadel: Instance) -> Iterator[tuple[Fleet, Fleet, str]]:
    """Test servers that live as long as a module's tests: starting them anew for each would take most of the time."""
    model = f"model-{secrets.token_hex(4)}"
    with Fleet.start(models=[model], tokens=8) as first, Fleet.start(models=[model], tokens=8) as second:
        yield first, second, model


@pytest.fixture
def pair(citadel: Instance, case: Case, two_processes: tuple[Fleet, Fleet, str]) -> Iterator[Pair]:
    """Two servers of good behaviour and no past."""
    first, second, model = two_processes
    for server in (first, second):
        server.behave()
        server.clear()
    case.servers += [first, second]
    with (
        citadel.registered(first.url, [model], weight=1000) as first.server_id,
        citadel.registered(second.url, [model]) as second.server_id,
    ):
        yield Pair(case, first, second, model)
