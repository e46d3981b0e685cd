"""What load balancers and orchestrators of containers ask; anybody may, and learns no more than the state."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psycopg
import pytest

from tests.gateway.conftest import SETTINGS
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import Instance, running


async def get(citadel: Instance, path: str) -> tuple[int, dict[str, object]]:
    """Without any key."""
    async with aiohttp.ClientSession(citadel.url) as session, session.get(path) as answer:
        return answer.status, json.loads(await answer.read())


async def until(citadel: Instance, path: str, status: int) -> dict[str, object]:
    async with asyncio.timeout(3 + HELD_UP):
        while True:
            found = await get(citadel, path)
            if found[0] == status:
                return found[1]
            await asyncio.sleep(0.05)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Elsewhere]:
    """A Citadel in which nobody else takes a server out."""
    with running(tmp_path, SETTINGS) as citadel, Elsewhere.on(citadel) as own:
        yield own


@pytest.fixture
def unreachable(own: Elsewhere) -> str:
    """A model whose only server is not there."""
    name = f"dead-{own.model}"
    own.command("server", "add", name, "http://127.0.0.1:9", "--model", name)
    own.citadel.settle()
    return name


async def test_a_living_worker_that_serves_everything_is_ready(citadel: Instance) -> None:
    assert await get(citadel, "/health/live") == (200, {"status": "alive"})


async def test_it_is_ready_when_every_model_would_be_served(own: Elsewhere, unreachable: str) -> None:
    """Found out by the first request to the server that is not there, and over when it is taken out."""
    citadel = own.citadel
    async with own.asking() as client:
        refused = await client.post({"model": unreachable, "prompt": "a"}, "/v1/completions")
        assert refused.status == 503
    assert await until(citadel, "/health/ready", 503) == {
        "status": "unhealthy",
        "models_without_server": [unreachable],
    }, "of this Citadel whoever is near may see the fleet"
    status, page = await get(citadel, "/health/")
    assert (status, page["status"]) == (200, "degraded")
    assert (await get(citadel, "/health/live"))[0] == 200
    own.command("server", "remove", unreachable)
    citadel.settle()
    own.command("server", "add", unreachable, own.server.url, "--model", unreachable)
    assert await until(citadel, "/health/ready", 200) == {"status": "ready"}
    assert (await get(citadel, "/health/"))[1]["status"] == "healthy"


@pytest.mark.parametrize("state", ["draining", "disabled", "pending"])
async def test_it_is_ready_without_what_gets_no_traffic_by_an_operators_word(
    own: Elsewhere, unreachable: str, state: str
) -> None:
    """Of a server that nobody has approved not even the models are told: else any key that may register one would
    decide what this Citadel is said to serve, and whether it is ready.
    """
    citadel = own.citadel
    with psycopg.connect(citadel.database_url, autocommit=True) as connection:
        connection.execute("UPDATE orchestration_server SET state = %s WHERE server_id = %s", (state, unreachable))
    citadel.settle()
    try:
        assert await get(citadel, "/health/ready") == (200, {"status": "ready"})
        assert (await get(citadel, "/health/"))[1]["status"] == "healthy"
        async with own.asking() as client:
            listed = {one["id"] for one in (await client.get("/v1/models")).json()["data"]}
            assert (unreachable in listed) is (state != "pending")
            answer = await client.post({"model": unreachable, "prompt": "a"}, "/v1/completions")
            assert answer.status == (404 if state == "pending" else 503)
    finally:
        own.command("server", "remove", unreachable)


async def test_strangers_see_no_insides(citadel: Instance) -> None:
    for path in ("/health/", "/health/live", "/health/ready"):
        page = json.dumps((await get(citadel, path))[1])
        for inside in ("smollm2", "demo-chat", "127.0.0.1", str(citadel.home)):
            assert inside not in page


async def test_addresses_that_people_type(citadel: Instance, http: aiohttp.ClientSession) -> None:
    async with http.get("/", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["location"]) == (302, "/admin/")
    async with http.get("/health") as answer:
        assert answer.status == 200
