"""The fleet's clock with several beats and several probers, some of which die: FAULTS, row 17."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from citadel.config import ROOT
from tests.embedded.conftest import eventually
from tests.held_up import HELD_UP
from tests.instance import Instance, running, whole_lines

TICKS = 200
SETTINGS = {"CITADEL_DEMO_FLEET": "0", "CITADEL_LOG__LEVEL": "debug"}
BEAT = ("--app", "tests.orchestration.health.fast_beat", "beat")
PROBER = ("--app", "citadel.celery", "worker", "--queues", "probes", "--pool", "threads", "--concurrency", "2")
FAST = 10**10
"""Numbers of a beat that ticks ten times a second are above this, those of one that ticks each second below."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A Citadel whose processes are killed here."""
    with running(tmp_path_factory.mktemp("own"), SETTINGS) as citadel:
        eventually(lambda: all((citadel.home / "run" / f"{name}.ready").exists() for name in ("prober", "beat")))
        eventually(lambda: ticks(citadel, "prober"))
        yield citadel


@contextmanager
def one_more(citadel: Instance, log: str, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another Celery process of that Citadel, as another machine would run it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CITADEL_", "DJANGO_"))}
    environment |= {"CITADEL_HOME": str(citadel.home), **SETTINGS}
    with (
        (citadel.home / "logs" / f"{log}.log").open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments], cwd=ROOT, env=environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def ticks(citadel: Instance, *logs: str) -> list[tuple[int, str]]:
    """Number and time of each tick that the probers with these logs took, in the order of the numbers."""
    found = []
    for log in logs:
        for line in whole_lines((citadel.home / "logs" / f"{log}.log").read_bytes()):
            if b'"event": "tick"' in line:
                entry = json.loads(line)
                found.append((entry["number"], entry["timestamp"]))
    return sorted(found)


def fast_ones(citadel: Instance, *logs: str) -> list[int]:
    return [number for number, _ in ticks(citadel, *logs) if number > FAST]


@pytest.mark.faults
def test_two_beats_and_two_probers_take_each_tick_once_and_go_on_when_one_is_killed(own: Instance) -> None:
    logs = ("prober", "prober-2")
    with ExitStack() as stack:
        stack.enter_context(one_more(own, "prober-2", *PROBER, "--hostname", "prober-2@elsewhere"))
        first = stack.enter_context(one_more(own, "beat-2", *BEAT))
        eventually(lambda: len(fast_ones(own, *logs)) > 20, 20)
        stack.enter_context(one_more(own, "beat-3", *BEAT))
        eventually(lambda: len(fast_ones(own, *logs)) > TICKS // 2, 20)
        first.kill()
        eventually(lambda: len(fast_ones(own, *logs)) > TICKS, 30)
        taken = fast_ones(own, *logs)
        assert len(taken) == len(set(taken))
        assert max(later - earlier for earlier, later in pairwise(taken)) < 15 / 0.1
        assert all(len(fast_ones(own, log)) > 10 for log in logs), "both probers have worked"
    slow = [number for number, _ in ticks(own, *logs) if number < FAST]
    assert len(slow) == len(set(slow)) > 10


@pytest.mark.parametrize("name", ["beat", "prober", "redis"])
def test_ticks_go_on_after_the_death_of(own: Instance, name: str) -> None:
    logs = [path.stem for path in (own.home / "logs").glob("prober*.log")]
    before = max(number for number, _ in ticks(own, *logs) if number < FAST)
    killed = time.monotonic()
    os.kill(int((own.home / "run" / f"{name}.pid").read_text()), signal.SIGKILL)
    time.sleep(1.0)
    eventually(lambda: len([number for number, _ in ticks(own, *logs) if before + 1 < number < FAST]) >= 3, 20)
    assert time.monotonic() - killed < 15 + HELD_UP


def test_all_end_with_their_citadel(tmp_path: Path) -> None:
    with running(tmp_path / "home", SETTINGS) as citadel:
        run = citadel.home / "run"
        eventually(lambda: all((run / f"{name}.ready").exists() for name in ("prober", "worker", "beat")))
        processes = [psutil.Process(int((run / f"{name}.pid").read_text())) for name in ("prober", "worker", "beat")]
        assert [Path(str(process.cwd())) for process in processes] == [ROOT] * 3
        begun = time.monotonic()
    assert time.monotonic() - begun < 8 + HELD_UP
    assert not any(process.is_running() for process in processes)
    said = (citadel.home / "logs" / "supervisor.log").read_text()
    assert "killed" not in said
    for name in ("prober", "worker", "beat"):
        assert "Traceback" not in (citadel.home / "logs" / f"{name}.log").read_text()
