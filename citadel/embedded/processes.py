"""Which processes are ours: remembered with the time of their birth, so that a recycled id is never taken for one."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from citadel import presence
from citadel.embedded.home import Home, write_private_json


class Register:
    """The processes that the supervisor started in a home, kept in `run/` for people and for the next start.

    A disk that takes no more files is no reason to fail: the children must be looked after, listed or not.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._file = home.run / presence.PROCESSES
        self._born: dict[str, tuple[int, str]] = {}

    def enter(self, name: str, pid: int) -> None:
        """Write NAME's process id to `run/NAME.pid` and remember its birth; a process already gone is left out."""
        with suppress(psutil.NoSuchProcess, OSError):
            self._born[name] = (pid, presence.birth(pid))
            self._save()
            self._home.pid_file(name).write_text(f"{pid}\n")

    def leave(self, name: str) -> None:
        """Forget NAME, which has ended."""
        self._born.pop(name, None)
        with suppress(OSError):
            self._home.pid_file(name).unlink(missing_ok=True)
            self._save()

    def leftovers(self) -> dict[str, psutil.Process]:
        """The processes that an earlier supervisor of this home started and that still live, by name."""
        found = {name: presence.living(*entry) for name, entry in presence.recorded(self._home.path).items()}
        return {name: process for name, process in found.items() if process and process.pid != os.getpid()}

    def clear(self) -> None:
        """Remove every process id file: what they name has ended or was never ours."""
        for path in self._home.run.glob("*.pid"):
            path.unlink(missing_ok=True)
        self._born.clear()
        self._save()

    def _save(self) -> None:
        write_private_json(self._file, self._born)


def end(processes: Iterable[psutil.Process], patience: float) -> None:
    """Ask these processes to end and, after PATIENCE seconds, make them; with their process groups."""
    waiting = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in waiting:
            _signal_group(process, number)
        waiting = _still_there(waiting, patience)


def working_in(folder: Path, program: str) -> list[psutil.Process]:
    """The processes called PROGRAM whose working directory is FOLDER, as PostgreSQL's are in their data."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name() == program and Path(process.cwd()) == folder:
                found.append(process)
    return found


def wait_gone(folder: Path, program: str, patience: float) -> None:
    """Wait until no PROGRAM works in FOLDER; after PATIENCE seconds kill what is left."""
    for process in _still_there(working_in(folder, program), patience):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _still_there(working_in(folder, program), patience)


def _still_there(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Those that have not ended after PATIENCE seconds; comes back as soon as all have."""
    until = time.monotonic() + patience
    while (processes := [one for one in processes if presence.is_alive(one)]) and time.monotonic() < until:
        time.sleep(0.02)
    return processes


def _signal_group(process: psutil.Process, number: signal.Signals) -> None:
    """Each child leads a group of its own; `is_running` looks at the birth once more before the signal."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if not process.is_running():
            return
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
