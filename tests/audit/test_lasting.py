"""Nothing is lost: not when workers are told to stop under load, not while the database is away for a moment."""

import asyncio
import os
import secrets
import signal
import time
import urllib.request
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from tests.faults.invariants import eventually
from tests.fleet.control import calls_of
from tests.gateway.client import Client, chat
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP
from tests.instance import running

SETTINGS = {"CITADEL_DEMO_FLEET": "0", "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    """One whose parts may be stopped."""
    with running(tmp_path_factory.mktemp("own"), SETTINGS) as citadel, Elsewhere.on(citadel) as own:
        yield own


def _serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=2):
            return True
    except OSError:
        return False


def counted(own: Elsewhere, prefix: str) -> dict[str, int]:
    """Records by request id; OSError while there is no database."""
    try:
        with psycopg.connect(own.citadel.database_url, connect_timeout=2) as connection:
            rows = connection.execute(
                "SELECT request_id, count(*) FROM audit_record WHERE starts_with(request_id, %s) GROUP BY 1", (prefix,)
            )
            return dict(rows.fetchall())
    except psycopg.OperationalError:
        return {}


async def ask(own: Elsewhere, client: Client, prefix: str, numbers: range) -> set[str]:
    """Asks all at once; gives the ids of those that were answered."""

    async def one(identity: str) -> str:
        try:
            answer = await client.post(chat(own.model), x_request_id=identity)
        except OSError:
            return ""
        return identity if answer.status == 200 else ""

    return set(await asyncio.gather(*(one(f"{prefix}-{number}") for number in numbers))) - {""}


async def test_what_was_answered_before_a_worker_stops_is_recorded_once(own: Elsewhere) -> None:
    """SIGTERM in the middle of it: what runs is answered to its end, and all of that is in the database after."""
    prefix, worker = f"stop-{secrets.token_hex(4)}", own.citadel.worker
    own.server.clear()
    own.server.behave("slow_start 1000")
    async with own.asking() as client:
        asked = asyncio.create_task(ask(own, client, prefix, range(100)))
        await own.server.until(lambda log: len(calls_of(log)) == 100)
        os.kill(worker, signal.SIGTERM)
        answered = await asked
    own.server.behave()
    assert len(answered) == 100
    eventually(lambda: psutil.pid_exists(worker), within=20)
    eventually(lambda: not _serves(own.citadel.url), within=20)
    assert counted(own, prefix) == dict.fromkeys(answered, 1)


async def test_configuration_is_followed_after_the_database_was_away(own: Elsewhere) -> None:
    """Every connection that the worker had is dead then, and the next change is read all the same."""
    postgres = int((own.citadel.home / "run" / "postgres.pid").read_text())
    os.kill(postgres, signal.SIGINT)
    eventually(lambda: psutil.pid_exists(postgres), within=20)
    eventually(lambda: not _database_is_back(own), within=30)
    name = f"after-{secrets.token_hex(4)}"
    own.command("server", "add", name, "http://127.0.0.1:1", "--model", name)
    async with own.asking() as client:
        begun = time.monotonic()
        while (await client.get(f"/v1/models/{name}")).status != 200:
            assert time.monotonic() - begun < 5 + HELD_UP
            await asyncio.sleep(0.05)
    own.command("server", "remove", name)


def _database_is_back(own: Elsewhere) -> bool:
    try:
        psycopg.connect(own.citadel.database_url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


async def test_records_wait_for_a_database_that_is_away(own: Elsewhere) -> None:
    prefix = f"away-{secrets.token_hex(4)}"
    postgres = int((own.citadel.home / "run" / "postgres.pid").read_text())
    async with own.asking() as client:
        await ask(own, client, prefix, range(1))
        os.kill(postgres, signal.SIGINT)  # a fast stop; the supervisor starts it anew
        answered = await ask(own, client, prefix, range(1, 50))
        assert len(answered) == 49, "the database is not on a request's path"
    everyone = {f"{prefix}-{number}": 1 for number in range(50)}
    eventually(lambda: counted(own, prefix) != everyone, within=30)


async def test_who_asks_for_what_only_the_database_knows_is_told_to_come_back(own: Elsewhere) -> None:
    """As the error tree says it, and nothing is logged as unexpected."""
    run, key, subscriptions = own.citadel.home / "run", own.citadel.admin_key, "/orchestration/webhooks"
    supervisor, postgres = (int((run / f"{name}.pid").read_text()) for name in ("supervisor", "postgres"))
    one = f"{subscriptions}/sub_0"
    asked = [
        *(("GET", path) for path in ("/webhooks", "/webhooks/any", subscriptions, one, f"{one}/deliveries")),
        *(("GET", path) for path in ("/orchestration/events", "/orchestration/servers/list", "/management/stats")),
        *(("POST", path) for path in ("/webhooks/alertmanager", "/webhooks/server_status", f"{one}/rotate")),
        *(("POST", path) for path in (f"{one}/replay", f"{one}/deliveries/1/replay", "/management/cache/clear")),
        *(("POST", path) for path in (f"/orchestration/failover/{own.model}", "/orchestration/servers/register")),
        *((method, one) for method in ("PATCH", "DELETE")),
    ]
    bodies = {"/orchestration/servers/register": b'{"id": "away", "hostname": "127.0.0.1", "port": 9}'}
    async with own.asking(key) as client:
        assert (await client.get(subscriptions)).status == 200
        os.kill(supervisor, signal.SIGSTOP)  # which would start it anew
        try:
            os.kill(postgres, signal.SIGINT)
            eventually(lambda: _database_is_back(own), within=20)
            for method, path in asked:
                data = None if method == "GET" else bodies.get(path, b"{}")
                answer = await client.ask(method, path, data=data)
                assert (answer.status, answer.code) == (503, "unavailable"), (method, path, answer.body)
                assert int(answer.headers["retry-after"]) >= 1
        finally:
            os.kill(supervisor, signal.SIGCONT)
    eventually(lambda: not _database_is_back(own), within=30)
    assert not [log for log in own.citadel.home.glob("logs/web-*.log") if b'"unexpected_failure"' in log.read_bytes()]


async def test_what_a_killed_worker_was_doing_is_not_counted_as_running(own: Elsewhere) -> None:
    """Nor as waiting to be written."""
    worker = own.citadel.worker
    own.server.clear()
    own.server.behave("hang")
    async with own.asking() as client:
        asked = [asyncio.create_task(client.post(chat(own.model))) for _ in range(5)]
        await own.server.until(lambda log: len(calls_of(log)) == 5)
        eventually(lambda: gauge(own, "http_requests_in_flight") != 5)
        os.kill(worker, signal.SIGKILL)
        await asyncio.gather(*asked, return_exceptions=True)
    own.server.behave()
    eventually(lambda: not _serves(own.citadel.url), within=20)
    eventually(lambda: gauge(own, "http_requests_in_flight"))


def gauge(own: Elsewhere, name: str) -> float:
    """What the metrics say."""
    headers = {"authorization": f"Bearer {own.citadel.admin_key}"}
    with urllib.request.urlopen(urllib.request.Request(f"{own.citadel.url}/metrics", headers=headers)) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))
