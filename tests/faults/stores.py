"""A Citadel of four workers whose stores a test takes away, the traffic meanwhile, and what is written to the logs."""

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis

from citadel.embedded.redis import program
from tests.faults.invariants import eventually
from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import WORKERS, Asker, Four, Reply, left_as_it_was
from tests.instance import Instance, free_port, whole_lines
from tests.security_lines import OF_SECURITY

SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_SERVER__WORKERS": str(WORKERS),
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    "CITADEL_POOLS__DATABASE": "3",  # a few more may stay for ten minutes, and are not lost
}
NORMAL_WITHIN = 10.0
"""Seconds after which all is as before, once a store is back."""
_numbers = itertools.count()


@dataclass
class OwnRedis:
    """A Redis that a test starts and ends, on a port that stays its own. What it held dies with it."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """The address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Gives it when it answers."""
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [program(), *options, "--dir", str(self.folder)],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
        eventually(self.is_away)

    def is_away(self) -> bool:
        """Whether it does not answer, or not at once."""
        try:
            with redis.Redis(port=self.port, socket_timeout=0.2, retry=None) as asked:
                asked.ping()
        except redis.RedisError:
            return True
        return False

    def pause(self, seconds: float) -> None:
        """Has it take what comes, and answer nobody."""
        with redis.Redis(port=self.port) as asked:
            asked.execute_command("CLIENT", "PAUSE", round(seconds * 1000), "ALL")

    def kill(self) -> None:
        """Ends it without a warning."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def stop_database(citadel: Instance) -> None:
    """Ends the embedded PostgreSQL, which nobody starts anew until `start_database`."""
    supervisor, postgres = (_pid(citadel, name) for name in ("supervisor", "postgres"))
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(postgres, signal.SIGINT)  # to the postmaster: all who are connected are thrown out
    eventually((citadel.home / "postgres" / "data" / "postmaster.pid").exists, within=20)


def start_database(citadel: Instance) -> None:
    """Lets it be started, and waits until it answers."""
    os.kill(_pid(citadel, "supervisor"), signal.SIGCONT)
    eventually(lambda: not _answers(citadel), within=30)


def _pid(citadel: Instance, name: str) -> int:
    return int((citadel.home / "run" / f"{name}.pid").read_text())


def _answers(citadel: Instance) -> bool:
    try:
        psycopg.connect(citadel.database_url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@asynccontextmanager
async def four_on(elsewhere: Elsewhere) -> AsyncIterator[Four]:
    """The four workers, warm, and what must hold of all of them afterwards."""
    four = Four(elsewhere.citadel, elsewhere)
    async with four.asking() as asker:
        assert not failed(await traffic(asker, elsewhere.model, 60, 5))
    with left_as_it_was(four), four.stack:
        yield four


async def traffic(asker: Asker, model: str, rate: float, seconds: float) -> list[Reply]:
    """So many requests a second, none equal to another: plain ones, streams, and those that the cache is asked for."""
    forms: tuple[dict[str, object], ...] = ({}, {"stream": True}, {"temperature": 0})
    begun, tasks = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        text = f"question {next(_numbers)}"
        tasks.append(asyncio.create_task(asker.chat(model, text, **forms[number % len(forms)])))
    return list(await asyncio.gather(*tasks))


def p99(replies: Sequence[Reply]) -> float:
    """The seconds in which all but one in a hundred were answered."""
    return sorted(reply.seconds for reply in replies)[int(len(replies) * 0.99)]


def failed(replies: Sequence[Reply]) -> list[tuple[int, bytes]]:
    """Those that were not answered as they should be."""
    return [(one.status, one.body) for one in replies if one.status != 200 or b'data: {"error"' in one.body]


def recorded_once(citadel: Instance, replies: Sequence[Reply]) -> None:
    """Each of these requests has its record, and no more than that."""
    asked = {reply.headers["x-request-id"] for reply in replies}

    def not_once() -> dict[str, int]:
        with psycopg.connect(citadel.database_url) as connection:
            rows = connection.execute(
                "SELECT request_id, count(*) FROM audit_record WHERE request_id = ANY(%s) GROUP BY 1", (list(asked),)
            )
            counted = dict.fromkeys(asked, 0) | dict(rows.fetchall())
        return {identity: count for identity, count in counted.items() if count != 1}

    eventually(not_once)


def log_lines(citadel: Instance) -> Counter[str]:
    """How much each of Citadel's own processes has written, but for requests that were refused, each of which is told
    within a bound of its own.
    """
    stores = ("postgres", "redis")
    logs = [log for log in citadel.home.glob("logs/*.log") if not log.stem.startswith(stores)]
    return Counter({log.stem: sum(OF_SECURITY not in line for line in whole_lines(log.read_bytes())) for log in logs})


async def admitted(four: Four, model: str, count: int, **limits: int) -> int:
    """How many of so many requests at a time a new key with such limits is granted."""
    return await granted(four, four.elsewhere.key(**limits), model, count)


async def granted(four: Four, key: str, model: str, count: int) -> int:
    """The same for a key that is there; each of the requests meets a worker by chance."""
    async with four.asking(key) as asker:
        text = secrets.token_hex(4)
        replies = await asyncio.gather(*(asker.chat(model, f"{text} {number}") for number in range(count)))
    statuses = Counter(reply.status for reply in replies)
    assert statuses.keys() <= {200, 429}, statuses
    return statuses[200]


async def until_exact(four: Four, model: str, slow: str) -> float:
    """Waits until the limits hold over all workers to the very request, and goes on so; gives the seconds."""
    begun, limit = time.monotonic(), WORKERS + 2  # which no equal shares come to
    exact_since: float | None = None
    while exact_since is None or time.monotonic() < exact_since + 3:
        found = (
            await admitted(four, model, 5 * limit, requests_per_minute=limit),
            await admitted(four, slow, 5 * limit, concurrent=limit),
        )
        if found != (limit, limit):
            exact_since = None
        elif exact_since is None:
            exact_since = time.monotonic()
        assert time.monotonic() < begun + NORMAL_WITHIN + 10, found
    return exact_since - begun


async def until_ticking(redis_url: str) -> None:
    """Waits until the clock of the fleet ticks, which probes go by: Celery's beat and prober are back."""
    with redis.Redis.from_url(redis_url) as state:
        before = set(state.keys("fleet:tick:*"))
        while not set(state.keys("fleet:tick:*")) - before:  # noqa: ASYNC110  # that it ticks stands in Redis alone
            await asyncio.sleep(0.1)
