"""Probers in the test's own process, on a database of their own in the run's Redis, and servers to be watched."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

import psycopg

from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.board import Board
from apps.orchestration.health.conditions import Record
from apps.orchestration.health.loads import load_lasts
from apps.orchestration.health.rounds import Rounds
from citadel import config
from citadel.database import make_pool
from citadel.redis import Redis
from citadel.sections import Config
from tests.instance import Instance

DATABASE = 10 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 6
"""Each test process flushes its own."""
"""Of the run's Redis: its own prober knows nothing of this one."""
EVERY = 0.1
"""Seconds between two ticks."""
RARELY = {"models_ttl": 86_400}


def configured(citadel: Instance, **sections: Mapping[str, Any]) -> Config:
    """The run's stores and secret, and some sections with other values than the defaults: the run's own are quiet.

    Servers are asked for their models a day apart, unless told: by chance a server's turn would come in the middle.
    """
    base = config.read({"CITADEL_HOME": str(citadel.home)})[0]
    usual = Config(home=base.home, security=base.security)
    changed = {
        name: getattr(usual, name).model_copy(update=dict(values))
        for name, values in ({"cache": RARELY} | sections).items()
    }
    return base.model_copy(update=changed)


def snapshot(servers: Iterable[Server], model: str = "m") -> Fleet:
    """A fleet in which all of `servers` hold one model."""
    known = {server.server_id: server for server in servers}
    held = Model(model, tuple(known.values()))
    return Fleet(1, MappingProxyType({model: held}), MappingProxyType({}), MappingProxyType(known))


class Watcher:
    """One prober without Celery: ticks come when the test says so."""

    def __init__(self, rounds: Rounds, board: Board, redis: Redis) -> None:
        self.rounds = rounds
        self.board = board
        self.redis = redis
        self.learned: list[str] = []
        self.settled: list[str] = []
        """Those of them whose kind was to be settled."""

    async def watch(self, seconds: float) -> list[int]:
        """Ticks for so long; gives the numbers of those that it took."""
        taken = []
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    if (number := await self.rounds.tick(EVERY)) is not None:
                        taken.append(number)
                    await asyncio.sleep(EVERY * random.uniform(0.2, 0.8))  # else one may always be just before another
        return taken

    async def until(self, server_id: str, status: str, within: float = 10.0) -> Record:
        """Ticks until a server has a status; gives its record."""
        async with asyncio.timeout(within):
            while True:
                record = await self.board.look_up(server_id)
                if record.status == status:
                    return record
                await self.rounds.tick(EVERY)
                await asyncio.sleep(EVERY / 2)

    async def probe_of(self, server_id: str) -> dict[str, Any]:
        """What probes said of a server last."""
        return (await self.board.look_up(server_id)).memory("probe")


@asynccontextmanager
async def watching(citadel: Instance, config: Config, fleet: Fleet, *, fresh: bool = True) -> AsyncIterator[Watcher]:
    """A watcher of `fleet`; with `fresh` nothing is known of it before."""
    assert config.redis_url
    redis = Redis(config.redis_url, timeout=5, connect_timeout=5, name="watcher", database=DATABASE)
    pool = make_pool(config)
    await redis.start()
    await pool.open(wait=True)
    if fresh:
        await redis.call("FLUSHDB")
    learned: list[str] = []
    settled: list[str] = []

    def learn(server_id: str, settle: bool, _most: int) -> None:
        learned.append(server_id)
        settled.extend([server_id] if settle else [])

    rounds = Rounds(config, redis, pool, learn)
    rounds.fleet = fleet
    await rounds.start()
    watcher = Watcher(rounds, Board(redis, load_lasts(config.health)), redis)
    watcher.learned, watcher.settled = learned, settled
    try:
        yield watcher
    finally:
        await rounds.stop()
        await redis.stop()
        await pool.close()


def told(citadel: Instance, *server_ids: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Type, server and data of the events of some servers, the oldest first."""
    with psycopg.connect(citadel.database_url) as connection:
        return connection.execute(
            "SELECT type, server_id, data FROM orchestration_event WHERE server_id = ANY (%s) ORDER BY id",
            (list(server_ids),),
        ).fetchall()
