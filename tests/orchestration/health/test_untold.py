"""Changes of health while PostgreSQL is away are told when it is back, each once and in their order."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import msgspec
import psutil
import psycopg
import pytest
import redis

from apps.orchestration.fleet import EMPTY
from apps.orchestration.health.board import HEALTH, UNTOLD
from apps.orchestration.health.changes import tell_changes
from apps.orchestration.health.conditions import Record
from citadel.database import make_pool
from tests.command import manage
from tests.embedded.conftest import eventually
from tests.fleet.control import Fleet
from tests.instance import Instance, running
from tests.orchestration.health.watchers import configured, told, watching

FAST = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_HEALTH__INTERVAL": "1",
    "CITADEL_HEALTH__FAST_INTERVAL": "1",
    "CITADEL_HEALTH__CONNECT_INTERVAL": "1",
    "CITADEL_HEALTH__HEALTHY_AFTER": "2",
}
Away = Callable[[Instance], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with running(tmp_path_factory.mktemp("own"), FAST) as citadel:
        eventually(lambda: all((citadel.home / "run" / f"{name}.ready").exists() for name in ("prober", "beat")))
        yield citadel


def process(citadel: Instance, name: str) -> psutil.Process:
    return psutil.Process(int((citadel.home / "run" / f"{name}.pid").read_text()))


@contextmanager
def gone(citadel: Instance) -> Iterator[None]:
    """Nobody starts it anew meanwhile."""
    supervisor, postgres = process(citadel, "supervisor"), process(citadel, "postgres")
    supervisor.suspend()
    try:
        postgres.kill()
        yield
    finally:
        supervisor.resume()


@contextmanager
def hanging(citadel: Instance) -> Iterator[None]:
    """It takes what it is sent and answers later, or never."""
    postmaster = process(citadel, "postgres")
    stopped = [postmaster, *postmaster.children(recursive=True)]
    for one in stopped:
        os.kill(one.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in stopped:
            os.kill(one.pid, signal.SIGCONT)


def changes(citadel: Instance, name: str) -> list[tuple[str, str]]:
    try:
        found = [data for kind, _, data in told(citadel, name) if kind == "health_status_changed"]
    except psycopg.OperationalError:  # it is still away
        return []
    moments = [data["since"] for data in found]
    assert moments == sorted(moments)
    return [(data["from"], data["to"]) for data in found]


@pytest.mark.faults
@pytest.mark.parametrize("away", [gone, hanging])
def test_what_happens_while_the_database_is_away_is_told_once(own: Instance, away: Away) -> None:
    name = away.__name__
    board = redis.Redis.from_url(own.redis_url)

    def status() -> str:
        raw = board.hget(HEALTH, name)
        return msgspec.json.decode(raw, type=Record).status if raw else ""

    with Fleet.start(models=["m"]) as server:
        assert manage(own.home, "server", "add", name, server.url).returncode == 0
        eventually(lambda: status() == "healthy", 20)  # so the prober knows it
        with away(own):
            server.kill()
            eventually(lambda: status() == "unhealthy", 20)
            server.restart()
            eventually(lambda: status() == "healthy", 20)
            time.sleep(1.0)
        eventually(lambda: len(changes(own, name)) == 2, 15)
        time.sleep(3.0)
        assert changes(own, name) == [("healthy", "unhealthy"), ("unhealthy", "healthy")]
        assert manage(own.home, "server", "remove", name).returncode == 0


async def test_many_who_tell_at_once_tell_each_change_once_and_in_order(citadel: Instance) -> None:
    """Though some die between the event and its being taken off the list."""
    name, config = f"u-{secrets.token_hex(4)}", configured(citadel)
    async with watching(citadel, config, EMPTY) as one, watching(citadel, config, EMPTY, fresh=False) as other:
        pools = [make_pool(config) for _ in range(2)]
        for pool in pools:
            await pool.open(wait=True)
        for number in range(150):
            await one.board.say(name, "probe", "unhealthy" if number % 2 == 0 else "healthy", str(number))
        died = await one.redis.call("LRANGE", UNTOLD, 0, 9)
        await asyncio.gather(*(tell_changes(who.board, pool) for who, pool in zip((one, other), pools, strict=True)))
        await one.redis.call("RPUSH", UNTOLD, *died)
        await tell_changes(one.board, pools[0])
        for pool in pools:
            await pool.close()
        assert not await one.board.untold()
    assert [data["reason"] for _, _, data in told(citadel, name)] == [str(number) for number in range(150)]
