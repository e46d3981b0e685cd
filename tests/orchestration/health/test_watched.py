"""A running Citadel with the usual settings watches its servers without any traffic: FAULTS, rows 1 and 3."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest

from tests.command import manage
from tests.embedded.conftest import eventually
from tests.fleet.control import Fleet
from tests.instance import Instance, running
from tests.orchestration.health.watchers import told

USUAL = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_HEALTH__INTERVAL": "30",
    "CITADEL_HEALTH__FAST_INTERVAL": "2",
    "CITADEL_HEALTH__CONNECT_INTERVAL": "5",
}
IN_ORDER = ["health_status_changed", "failover_initiated", "failover_completed", "cluster_rebalanced"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running(tmp_path_factory.mktemp("own"), USUAL) as citadel:
        yield citadel


def kinds(citadel: Instance, name: str) -> list[str]:
    return [kind for kind, _, _ in told(citadel, name) if kind in IN_ORDER]


def models_of(citadel: Instance, name: str) -> set[str]:
    with psycopg.connect(citadel.database_url) as connection:
        rows: list[Any] = connection.execute(
            "SELECT m.name FROM orchestration_servedmodel m JOIN orchestration_server s ON s.id = m.server_id "
            "WHERE s.server_id = %s",
            (name,),
        ).fetchall()
    return {name for (name,) in rows}


@pytest.mark.faults
def test_deaths_are_found_told_and_undone(own: Instance) -> None:
    """A killed server and one whose host is gone, each with all that follows within 15 s of it."""
    with ExitStack() as stack:
        killed, silent, well = (stack.enter_context(Fleet.start(models=["m"])) for _ in range(3))
        for name, server in (("killed", killed), ("silent", silent), ("well", well)):
            assert manage(own.home, "server", "add", name, server.url).returncode == 0
        eventually(lambda: all(server.log(probes=True) for server in (killed, silent, well)), 15)
        asked = len(well.log(probes=True))
        time.sleep(1.0)
        died = time.monotonic()
        killed.kill()
        silent.behave("silent_host")
        for name in ("killed", "silent"):
            eventually(lambda name=name: kinds(own, name) == IN_ORDER, died + 15 - time.monotonic())
            data = {kind: data for kind, _, data in told(own, name)}
            assert data["health_status_changed"]["to"] == "unhealthy"
        silent.behave()
        killed.restart()
        returned = time.monotonic()
        for name in ("killed", "silent"):
            eventually(lambda name=name: len(kinds(own, name)) == 6, returned + 40 - time.monotonic())
            assert kinds(own, name)[4:] == ["health_status_changed", "cluster_rebalanced"]
            assert told(own, name)[-1][2]["cause"] == "recovery"
        assert len([seen for seen in killed.log(probes=True) if seen.path == "/v1/models"]) >= 5
        assert kinds(own, "well") == []
        assert len(well.log(probes=True)) - asked <= 4


@pytest.mark.faults
def test_a_server_that_comes_back_is_asked_for_its_models(own: Instance) -> None:
    with Fleet.start(models=["old"]) as server:
        assert manage(own.home, "server", "add", "changing", server.url).returncode == 0
        eventually(lambda: server.log(probes=True), 15)
        assert models_of(own, "changing") == {"old"}
        server.kill()
        eventually(lambda: kinds(own, "changing")[:1] == IN_ORDER[:1], 15)
        server._options = [word if word != "old" else "new" for word in server._options]
        server.restart()
        eventually(lambda: models_of(own, "changing") == {"new"}, 40)


@pytest.mark.faults
def test_a_server_of_a_kind_that_was_told_is_asked_for_its_models_once_it_listens(own: Instance) -> None:
    """It registered a moment before, as at a machine's start."""
    with Fleet.start(kind="ollama", models=["early"]) as server:
        server.kill()
        body = {"id": "early-1", "hostname": server.host, "port": server.port, "kind": "ollama"}
        headers = {"authorization": f"Bearer {own.admin_key}"}
        url = f"{own.url}/orchestration/servers/register"
        assert httpx.post(url, json=body, headers=headers, trust_env=False).status_code == 200
        time.sleep(1.0)
        server.restart()
        eventually(lambda: models_of(own, "early-1") == {"early"}, 10)


@pytest.mark.long
def test_a_stopped_server_is_found_and_comes_back_by_itself(own: Instance) -> None:
    """Its kernel goes on taking connections: only probes tell."""
    with Fleet.start(models=["m"]) as server:
        assert manage(own.home, "server", "add", "stopped", server.url).returncode == 0
        eventually(lambda: server.log(probes=True), 15)
        server.stop()
        eventually(lambda: kinds(own, "stopped") == IN_ORDER, 90)
        [reason] = [data["reason"] for kind, _, data in told(own, "stopped") if kind == IN_ORDER[0]]
        assert reason == "timeout"
        server.cont()
        eventually(lambda: len(kinds(own, "stopped")) == 6, 50)
