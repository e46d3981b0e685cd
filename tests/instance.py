"""A real Citadel for tests: the embedded mode in a folder of its own, shared by all test processes of a run.

Whoever comes first starts it, whoever goes last stops it. Registry and keys are changed through the product's own
modules, in the test's process, on the instance's database.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psycopg

from citadel.config import PLAIN_NAMES

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT = 120.0
STOP_LIMIT = 90.0

# Limits stay on, so far up that only tests about them meet them; waits are shorter than a person would set them.
SETTINGS = {
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "10000000",
    "CITADEL_LIMITS__GLOBAL__BURST": "1000000",
    "CITADEL_SECURITY__CONNECTIONS": "10000",
    "CITADEL_SECURITY__PENDING_BODIES_MB": "1024",
    "CITADEL_TIMEOUTS__STREAM_SILENCE": "2",
    "CITADEL_TIMEOUTS__STREAM_IDLE": "4",
    "CITADEL_TIMEOUTS__BODY": "3",
    "CITADEL_TIMEOUTS__HEAD": "3",
    "CITADEL_SECURITY__WEBHOOK_NETWORKS": "[loopback]",
    "CITADEL_WEBHOOKS__RETRY_DELAYS": "[0.1, 0.2, 0.2, 0.2, 0.2]",
    "CITADEL_WEBHOOKS__DISABLE_AFTER": "2",
}

# All that a run's tests ask of the API with one key would be a flood.
UNGUARDED = {"CITADEL_LIMITS__OTHERS_PER_MINUTE": "0"}

# Probes would be among the requests and connections that tests count; only tests about them have them.
QUIET = {
    "CITADEL_HEALTH__INTERVAL": "3600",
    "CITADEL_HEALTH__FAST_INTERVAL": "3600",
    "CITADEL_HEALTH__CONNECT_INTERVAL": "3600",
}


@dataclass(frozen=True)
class Instance:
    """A running Citadel."""

    home: Path
    url: str
    admin_key: str
    database_url: str
    redis_url: str

    def key(
        self,
        team: str | None = None,
        *,
        models: Sequence[str] | None = None,
        requests_per_minute: int | None = 0,
        concurrent: int | None = 0,
        role: str = "developer",
        max_priority: str = "critical",
        **restrictions: Any,
    ) -> str:
        """A new key of `team` (a new one unless said), without limits unless said; None is the configured default."""
        from apps.gateway.access.keys.life import issue

        team = team or f"team-{secrets.token_hex(4)}"
        limits = {"requests_per_minute": requests_per_minute, "concurrent": concurrent}
        models = list(models) if models else None
        return issue(team, "test", role, allowed_models=models, max_priority=max_priority, **limits, **restrictions)

    @contextmanager
    def registered(self, url: str, models: Sequence[str], *, kind: str = "openai", weight: int = 1) -> Iterator[str]:
        """A server that holds `models`, by its id; every worker knows of it."""
        from apps.orchestration.registry import add

        server_id = f"s-{secrets.token_hex(4)}"
        add(server_id, url, kind=kind, models=list(models), weight=weight)
        try:
            self.settle()
            yield server_id
        finally:
            self.remove(server_id)

    def remove(self, server_id: str) -> None:
        """Takes a server out."""
        from apps.orchestration.models import Server

        Server.objects.filter(server_id=server_id).delete()

    def settle(self, within: float = 20.0) -> None:
        """Waits until the worker has read the configuration as it is now: it names the epoch in its log."""
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute("SELECT number FROM orchestration_epoch").fetchone()
        epoch = row[0] if row else 0
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if all(_known_epoch(log) >= epoch for log in self.home.glob("logs/web-*.log")):
                return
            time.sleep(0.01)
        raise AssertionError(f"not every worker knew of epoch {epoch} within {within} s")

    def records(self, request_id: str, within: float = 5.0) -> list[dict[str, object]]:
        """The audit records of a request, as soon as there are any."""
        deadline = time.monotonic() + within
        with psycopg.connect(self.database_url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            while True:
                found = connection.execute("SELECT * FROM audit_record WHERE request_id = %s", (request_id,)).fetchall()
                if found or time.monotonic() > deadline:
                    return found
                time.sleep(0.02)

    @property
    def worker(self) -> int:
        """The process id of the first web worker."""
        return int((self.home / "run" / "web-1.pid").read_text())


def whole_lines(log: bytes) -> list[bytes]:
    """The lines of a log that is being written, without a last one of which only a part is there."""
    return log.rpartition(b"\n")[0].splitlines()


def _known_epoch(log: Path) -> int:
    """The epoch that the last whole line about one names; -1 if there is none."""
    text = log.read_bytes()
    found = text.rfind(b'"configuration_loaded"', 0, text.rfind(b"\n") + 1)
    if found < 0:
        return -1
    return int(json.loads(text[text.rfind(b"\n", 0, found) + 1 : text.index(b"\n", found)])["epoch"])


@contextmanager
def running(home: Path, settings: Mapping[str, str], *, within: float = START_LIMIT) -> Iterator[Instance]:
    """Starts a Citadel in `home` and stops it at the end. A new home is a copy of one where all is made already."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not any(home.iterdir()):
        _furnish(home)
    process = _start(home, settings)
    try:
        yield _instance(home, process, within)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_LIMIT)


@contextmanager
def shared(folder: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[Instance]:
    """The one Citadel in `folder` of a test run, for any number of processes that hold it at a time."""
    lock, holders, home = filelock.FileLock(folder / "citadel.lock"), folder / "citadel.holders", folder / "citadel"
    with lock:
        count = int(holders.read_text()) if holders.exists() else 0
        if not count:
            process = _start(home, settings)
            _instance(home, process, START_LIMIT)
        holders.write_text(str(count + 1))
    try:
        yield _read(home)
    finally:
        with lock:
            count = int(holders.read_text()) - 1
            holders.write_text(str(count))
            if not count:
                _stop(int((home / "run" / "supervisor.pid").read_text()))


def _furnish(home: Path) -> None:
    """Copies what whoever comes first makes in the folder of a run by several processes.

    A database with all its tables takes as long to make as all the rest of a start, and such a run starts dozens.
    """
    folder = next((above.parent for above in home.parents if above.name.startswith("popen-gw")), None)
    if not folder:
        return
    example = folder / "example"
    with filelock.FileLock(folder / "example.lock"):
        if not example.exists():
            made = folder / "unfinished"
            process = _start(made, {"CITADEL_DEMO_FLEET": "0"})
            _instance(made, process, START_LIMIT)
            process.send_signal(signal.SIGINT)
            process.wait(STOP_LIMIT)
            shutil.rmtree(made / "logs")
            shutil.rmtree(made / "run", ignore_errors=True)
            told = made / "first-run.json"
            told.write_text(json.dumps(json.loads(told.read_text()) | {"url": ""}))  # until it has one of its own
            made.rename(example)
    subprocess.run(["cp", "-a", f"{example}/.", str(home)], check=True)  # with the owners: PostgreSQL never is root's


def _start(home: Path, settings: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CITADEL_") and name.removesuffix("_FILE") not in PLAIN_NAMES
    }
    environment |= {
        "CITADEL_HOME": str(home),
        "CITADEL_SERVER__PORT": str(free_port()),
        **UNGUARDED,
        **QUIET,
        **settings,
    }
    with (home / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "citadel.embedded"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _instance(home: Path, process: "subprocess.Popen[bytes]", within: float) -> Instance:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and process.poll() is None:
        try:
            instance = _read(home)
            with urllib.request.urlopen(f"{instance.url}/health/ready", timeout=2):
                return instance
        except (OSError, ValueError, KeyError):
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"Citadel did not start:\n{(home / 'output').read_text()}")


def _read(home: Path) -> Instance:
    first_run = json.loads((home / "first-run.json").read_text())
    services = json.loads((home / "run" / "services.json").read_text())
    return Instance(home, first_run["url"], first_run["api_key"], services["DATABASE_URL"], services["REDIS_URL"])


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_LIMIT
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # of ours, and has ended
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)


def free_port() -> int:
    """A port of the loopback interface that nobody has, of those that the system gives to nobody by itself."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
