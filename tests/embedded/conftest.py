"""A home of its own for each test, and a small Citadel that runs in it."""

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from citadel.config import ROOT
from tests.instance import free_port

PATIENCE_SECONDS = 20.0


class Installation:
    """One home and the program that runs in it, started as a person would: a process of its own."""

    def __init__(self, home: Path, user: str | None = None) -> None:
        self.home = home
        self.port = free_port()
        self.user = user
        self.python = sys.executable
        self.module = "tests.embedded.small_citadel"
        self.heard = ""
        self.settings: dict[str, str] = {}
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def launch(self) -> subprocess.Popen[str]:
        environment = {
            name: value for name, value in os.environ.items() if "REDIS" not in name and "DATABASE" not in name
        }
        self.process = subprocess.Popen(
            [self.python, "-m", self.module],
            cwd=ROOT,
            env={
                **environment,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "CITADEL_HOME": str(self.home),
                "CITADEL_SERVER__PORT": str(self.port),
                **self.settings,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=self.user,
            group=pwd.getpwnam(self.user).pw_gid if self.user else None,
            extra_groups=[] if self.user else None,
            start_new_session=True,
        )
        return self.process

    def start(self) -> "Installation":
        process = self.launch()
        assert process.stdout
        self.heard = ""
        for line in process.stdout:
            self.heard += line
            if line.rstrip().endswith(("Ready", "Ctrl-C stops it.")):
                return self
        raise AssertionError(f"it ended before it was ready:\n{self.heard}")

    def output(self) -> str:
        """What it says until it ends by itself."""
        assert self.process
        return self.process.communicate(timeout=PATIENCE_SECONDS)[0]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """The exit code after the signal."""
        assert self.process
        self.process.send_signal(number)
        self.output()
        return self.process.returncode

    def pid(self, name: str) -> int:
        return int((self.home / "run" / f"{name}.pid").read_text())

    def living(self) -> list[psutil.Process]:
        """Every process that has to do with this home."""
        found = []
        for process in psutil.process_iter():
            try:
                about = " ".join(process.cmdline()) + process.cwd() + process.environ().get("CITADEL_HOME", "")
            except (psutil.Error, OSError):
                continue
            if str(self.home) in about and process.pid != os.getpid():
                found.append(process)
        return found

    def kill_all(self) -> None:
        """As a power cut does."""
        for process in [psutil.Process(self.process.pid)] if self.process and self.process.poll() is None else []:
            process.suspend()  # so that it starts nothing anew meanwhile
        for process in self.living():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process:
            self.process.wait()

    def addresses(self) -> dict[str, str]:
        return dict(json.loads((self.home / "run" / "services.json").read_text()))

    def page(self, path: str = "") -> str:
        with urlopen(self.url + path, timeout=5) as answer:
            return str(answer.read().decode())

    def said(self) -> str:
        return (self.home / "logs" / "supervisor.log").read_text()


@pytest.fixture(scope="session")
def used_home() -> Iterator[Path]:
    """A home that has run before: making its database is most of a first start's time."""
    with tempfile.TemporaryDirectory(prefix="citadel-test-", dir="/tmp") as name:
        first = Installation(Path(name) / "used")
        first.start()
        assert first.stop() == 0
        yield first.home


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: pytest's own are too long for sockets, which is a case of its own."""
    with tempfile.TemporaryDirectory(prefix="citadel-test-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def fresh(folder: Path) -> Iterator[Callable[..., Installation]]:
    """Makes installations that have never run, and leaves none of their processes behind."""
    made: list[Installation] = []

    def make(name: str = "home", user: str | None = None) -> Installation:
        made.append(Installation(folder / name, user))
        return made[-1]

    yield make
    for one in made:
        one.kill_all()


@pytest.fixture
def installation(used_home: Path) -> Iterator[Installation]:
    """An installation that ran before and stands still now."""
    one = Installation(used_home)
    yield one
    one.kill_all()


def eventually(happened: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until it is true; an OSError means not yet."""
    until = time.monotonic() + seconds
    while True:
        try:
            if happened():
                return
        except (OSError, ValueError):
            pass
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)
