"""Citadel under test: one worker with the whole path on, in a home of its own that goes when the run ends."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psycopg

from bench import answers, processes
from bench.processes import PYTHON, ROOT, Cores
from bench.targets import Target, Upstream
from citadel.config import PLAIN_NAMES

START_SECONDS = 180.0
SHIPPING_SECONDS = 60.0
FAR_ABOVE = "100000000"
TOKENS = "2000000000"
PLACES = "64"
"""More than are ever asked for at once: what is measured is what they cost, not waiting."""


class Shipped(NamedTuple):
    """What became of the audit records of the requests that were ``sent``.

    ``pending`` of them were on the way when the load ended; ``seconds`` later ``in_database`` were in PostgreSQL.
    """

    sent: int
    in_database: int
    pending: int
    seconds: float


class Citadel(Target):
    """The embedded mode with one worker. Its limits stay on, so far up that they let everything pass."""

    name = "citadel"

    def __init__(self, home: Path, cores: Cores, upstream: Upstream) -> None:
        """Take also the upstream, which becomes its only inference server."""
        super().__init__(home, cores)
        self.upstream = upstream
        self.citadel_home = home / "citadel"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not _is_address(name)},
            "CITADEL_HOME": str(self.citadel_home),
            "CITADEL_DEMO_FLEET": "0",
            "CITADEL_SERVER__PORT": str(self.port),
            "CITADEL_SERVER__WORKERS": "1",
            "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": FAR_ABOVE,
            "CITADEL_LIMITS__GLOBAL__BURST": "10000000",
        }

    def start(self) -> None:
        """Start it, register the upstream, make a key and give the worker its core."""
        command = [PYTHON, "-m", "citadel.embedded"]
        self.pid = processes.start(command, self.cores.rest, self.log, self.environment)
        processes.wait_for(f"{self.url}/health/live", self.pid, self.log, START_SECONDS)
        self.manage("server", "add", "bench", self.upstream.url, "--kind", "openai")
        for port in self.upstream.other_ports:
            placed = ("--kind", "openai", "--model", answers.PLACED_MODEL, "--max-concurrent", PLACES)
            self.manage("server", "add", f"bench-{port}", f"http://127.0.0.1:{port}", *placed)
        unlimited = ("--requests-per-minute", FAR_ABOVE, "--tokens-per-minute", TOKENS, "--concurrent", "100000")
        made = self.manage("key", "create", "--team", "bench", "--name", "bench", "--signing-secret", *unlimited)
        self.key, self.signing_secret = made.split()
        processes.wait_for(f"{self.url}/health/ready", self.pid, self.log, START_SECONDS)
        processes.pin(self.worker, self.cores.server)

    @property
    def worker(self) -> int:
        """The process id of the worker that answers requests."""
        return int((self.citadel_home / "run" / "web-1.pid").read_text())

    def server_pids(self) -> tuple[int, ...]:
        """Return the worker and what it has started."""
        return processes.tree(self.worker)

    def other_pids(self) -> tuple[int, ...]:
        """Return its databases, background workers and the supervisor."""
        return tuple(set(processes.tree(self.pid)) - set(self.server_pids()))

    def manage(self, *arguments: str) -> str:
        """Run a management command and return what it prints. Raise RuntimeError with its errors if it fails."""
        done = subprocess.run(
            [PYTHON, ROOT / "manage.py", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"manage.py {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def records(self) -> int:
        """Count the audit records in its PostgreSQL."""
        addresses = json.loads((self.citadel_home / "run" / "services.json").read_text())
        with psycopg.connect(addresses["DATABASE_URL"]) as connection:
            row = connection.execute("SELECT count(*) FROM audit_record").fetchone()
        assert row is not None
        return int(row[0])


class Unguarded(Target):
    """A second worker of that Citadel without authentication and limits (`bench/unguarded.py`), on the same core."""

    name = "unguarded"

    def __init__(self, home: Path, cores: Cores, citadel: Citadel) -> None:
        """Take the Citadel, which has been started before."""
        super().__init__(home, cores)
        self.citadel = citadel

    def start(self) -> None:
        """Start it with the stores of the Citadel."""
        addresses = json.loads((self.citadel.citadel_home / "run" / "services.json").read_text())
        environment = {**self.citadel.environment, **addresses}
        command = [PYTHON, "-m", "bench.unguarded", "--port", str(self.port), "--name", "unguarded"]
        self.pid = processes.start(command, self.cores.server, self.log, environment)
        processes.wait_for(f"{self.url}/health/ready", self.pid, self.log, START_SECONDS)
        self.key = self.citadel.key


def _is_address(name: str) -> bool:
    """Whether this variable names a store of the operator's, which a benchmark must not load."""
    return name.removeprefix("CITADEL_").removesuffix("_FILE") in PLAIN_NAMES


def shipped(citadel: Citadel) -> Shipped:
    """Wait until the record of every request is in PostgreSQL, ``SHIPPING_SECONDS`` at most, and tell what is there."""
    begin = time.monotonic()
    stored = at_once = citadel.records()
    while stored < citadel.sent and time.monotonic() - begin < SHIPPING_SECONDS:
        time.sleep(0.1)
        stored = citadel.records()
    return Shipped(citadel.sent, stored, citadel.sent - at_once, time.monotonic() - begin)
