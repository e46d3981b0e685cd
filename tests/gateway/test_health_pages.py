"""What load balancers and orchestrators of containers ask; anybody may, and learns no more than the state."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import psycopg
import pytest
import redis

from apps.orchestration.health.board import SAY
from apps.orchestration.models import Server
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.gateway.conftest import SETTINGS
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import Instance, running


async def get(citadel: Instance, path: str) -> tuple[int, dict[str, Any]]:
    """Without any key."""
    async with aiohttp.ClientSession(citadel.url) as session, session.get(path) as answer:
        return answer.status, json.loads(await answer.read())


async def until(citadel: Instance, path: str, status: int, said: str = "") -> dict[str, object]:
    """The page, as soon as it has that status, and says so of itself where that is asked for."""
    async with asyncio.timeout(5 + HELD_UP):
        while True:
            found, page = await get(citadel, path)
            if found == status and said in ("", page["status"]):
                return page
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """A Citadel in which nobody else takes a server out."""
    with running(tmp_path_factory.mktemp("own"), SETTINGS) as citadel, Elsewhere.on(citadel) as own:
        yield own


@pytest.fixture
def unreachable(own: Elsewhere) -> Iterator[str]:
    """A model whose only server is not there; both have this name, which no other test has."""
    name = f"dead-{secrets.token_hex(4)}"
    own.command("server", "add", name, "http://127.0.0.1:9", "--model", name)
    own.citadel.settle()
    yield name
    own.command("server", "remove", name)
    own.citadel.settle()


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
    own.command("server", "drain", unreachable)
    citadel.settle()
    own.command("server", "add", f"{unreachable}-again", own.server.url, "--model", unreachable)
    assert await until(citadel, "/health/ready", 200) == {"status": "ready"}
    await until(citadel, "/health/", 200, "healthy")
    own.command("server", "remove", f"{unreachable}-again")


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
    assert await get(citadel, "/health/ready") == (200, {"status": "ready"})
    await until(citadel, "/health/", 200, "healthy")
    async with own.asking() as client:
        listed = {one["id"] for one in (await client.get("/v1/models")).json()["data"]}
        assert (unreachable in listed) is (state != "pending")
        answer = await client.post({"model": unreachable, "prompt": "a"}, "/v1/completions")
        assert answer.status == (404 if state == "pending" else 503)


def say(citadel: Instance, server_id: str, status: str, reason: str = "", source: str = "traffic") -> None:
    """On the board, as the other workers hear it."""
    with redis.Redis.from_url(citadel.redis_url) as board:
        board.eval(SAY.text, 0, server_id, source, status, reason, "{}", "[]", "-1")


@pytest.fixture
def only(own: Elsewhere) -> Iterator[str]:
    """The only active server, and its model of the same name, from which nobody has had an answer that would speak for
    it: the other one is drained.
    """
    name = f"only-{secrets.token_hex(4)}"
    with Fleet.start(models=[name]) as server:
        own.command("server", "add", name, server.url)
        own.command("server", "drain", own.model)
        own.citadel.settle()
        yield name
        own.command("server", "enable", own.model)
        own.command("server", "remove", name)
        own.citadel.settle()


async def until_served(client: Client, model: str, *, by: str) -> None:
    """Asks until that server has answered well."""
    async with asyncio.timeout(30 + HELD_UP):
        while True:
            answer = await client.post(chat(model))
            if (answer.status, answer.headers.get("x-citadel-server")) == (200, by):
                return
            await asyncio.sleep(0.1)


async def test_who_obeys_the_pages_does_not_keep_a_server_out_that_waits_for_a_request(
    own: Elsewhere, only: str
) -> None:
    """It hung, so only a request can bring it back; what probes will disprove takes no request, nor what they say."""
    citadel, name = own.citadel, only
    say(citadel, name, "unhealthy", "timeout")
    await until(citadel, "/health/", 200, "degraded")
    assert await get(citadel, "/health/ready") == (200, {"status": "ready"})
    for source, reason in (("traffic", "refused"), ("probe", "timeout"), ("webhook", "hot")):
        say(citadel, name, "unhealthy", reason, source)
        assert (await until(citadel, "/health/", 503))["status"] == "unhealthy"
        assert (await get(citadel, "/health/ready"))[0] == 503
        say(citadel, name, "unhealthy", "timeout")
        if source != "traffic":
            say(citadel, name, "healthy", "", source)
        await until(citadel, "/health/", 200, "degraded")
    async with own.asking() as client:
        await until_served(client, name, by=name)
    await until(citadel, "/health/", 200, "healthy")


async def test_enabling_a_server_takes_back_what_the_traffic_says_of_it(own: Elsewhere, only: str) -> None:
    say(own.citadel, only, "unhealthy", "timeout")
    await until(own.citadel, "/health/", 200, "degraded")
    own.command("server", "enable", only)
    await until(own.citadel, "/health/", 200, "healthy")
    async with own.asking() as client:
        assert (await client.post(chat(only))).status == 200


async def test_a_fleet_of_which_operators_have_taken_out_all_is_degraded(own: Elsewhere) -> None:
    """Not unhealthy: a balancer would take away the console by which they are enabled. Nor is it well."""
    own.command("server", "drain", own.model)
    try:
        await until(own.citadel, "/health/", 200, "degraded")
        assert await get(own.citadel, "/health/ready") == (200, {"status": "ready"})
        assert (await get(own.citadel, "/health/enterprise"))[1]["cluster_status"] == "degraded"
    finally:
        own.command("server", "enable", own.model)
    await until(own.citadel, "/health/", 200, "healthy")


async def test_a_citadel_whose_only_server_had_hung_comes_back_into_another_ones_fleet(
    citadel: Instance, own: Elsewhere, only: str
) -> None:
    """It is asked for its health there, while another server has the model."""
    headers = {"authorization": f"Bearer {citadel.admin_key}"}
    say(own.citadel, only, "unhealthy", "timeout")
    await until(own.citadel, "/health/", 200, "degraded")
    with (
        Fleet.start(models=[only]) as other,
        citadel.registered(other.url, [only]),
        citadel.registered(own.citadel.url, [only], kind="citadel") as peer,
    ):
        Server.objects.filter(server_id=peer).update(api_key=own.unlimited)
        citadel.settle()
        async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
            client = Client(session)
            told = (await client.get(f"/orchestration/servers/{peer}/health?probe=true")).json()
            assert (told["status"], told["consecutive_failures"]) == ("degraded", 0)
            say(citadel, peer, "unhealthy", "timeout")
            await until_served(client, only, by=peer)
    await until(own.citadel, "/health/", 200, "healthy")


async def test_a_dead_server_is_told_though_another_one_serves_its_model(own: Elsewhere) -> None:
    """Nobody is refused, so load balancers may go on sending. And while Redis is away the list says what was known."""
    citadel, name = own.citadel, f"dead-{own.model}"
    headers = {"authorization": f"Bearer {citadel.admin_key}"}
    own.command("server", "add", name, "http://127.0.0.1:9", "--model", own.model)
    citadel.settle()
    try:
        async with own.asking() as client:
            for _ in range(20):
                assert (await client.post(chat(own.model))).status == 200
            assert await get(citadel, "/health/ready") == (200, {"status": "ready"})
            status, page = await get(citadel, "/health/")
            assert (status, page["status"]) == (200, "degraded")
            row = await row_when(citadel, client, name, "refused")
            assert row["health_status"] == "unhealthy"
            detailed = (await client.get("/health/detailed", key=citadel.admin_key)).json()
            assert detailed["status"] == "degraded"
            [detail] = [one for one in detailed["servers"] if one["server_id"] == name]
            assert (detail["message"], detail["health_status"]) == ("refused", "unhealthy")
            with own.silent_redis():
                async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
                    listed = (await Client(session).get("/orchestration/servers/list")).json()["servers"]
            assert listed[name]["health_status"] == "unhealthy"
    finally:
        own.command("server", "remove", name)


async def row_when(citadel: Instance, client: Client, name: str, message: str) -> dict[str, object]:
    """A server's row, once the worker has read on the board what its requests have found."""
    async with asyncio.timeout(3 + HELD_UP):
        while True:
            page = (await client.get("/management/servers/status?limit=1000", key=citadel.admin_key)).json()
            [row] = [one for one in page["data"] if one["server_id"] == name]
            if row["message"] == message:
                return dict(row)
            await asyncio.sleep(0.05)


async def test_a_database_that_is_away_is_told(own: Elsewhere) -> None:
    """As this worker finds it each second, whatever connections its pool may count."""

    async def until_told(client: Client, status: str) -> None:
        async with asyncio.timeout(5 + HELD_UP):
            while True:
                if (await client.get("/health/")).json()["services"]["database"] == status:
                    return
                await asyncio.sleep(0.1)

    headers = {"authorization": f"Bearer {own.citadel.admin_key}"}
    async with aiohttp.ClientSession(own.citadel.url, headers=headers) as session:
        client = Client(session)
        await until_told(client, "healthy")
        with no_database(own.citadel.database_url):
            await until_told(client, "unhealthy")
        await until_told(client, "healthy")


@contextmanager
def no_database(database_url: str) -> Iterator[None]:
    """It takes no connections, and those that there were are gone."""
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(database_url, dbname="template1", autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


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
