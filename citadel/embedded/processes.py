"""Which processes are ours: remembered with the time of their birth, so that a recycled id is never taken for one."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from citadel.embedded.home import Home, write_private_json


class Register:
    """The processes that the supervisor started in a home, kept in `run/` for people and for the next start.

    A disk that takes no more files is no reason to fail: the children must be looked after, listed or not.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._file = home.run / "processes.json"
        self._born: dict[str, tuple[int, str]] = {}

    def enter(self, name: str, pid: int) -> None:
        """Write NAME's process id to `run/NAME.pid` and remember its birth; a process already gone is left out."""
        with suppress(psutil.NoSuchProcess, OSError):
            self._born[name] = (pid, birth(pid))
            self._home.pid_file(name).write_text(f"{pid}\n")
            self._save()

    def leave(self, name: str) -> None:
        """Forget NAME, which has ended."""
        self._born.pop(name, None)
        with suppress(OSError):
            self._home.pid_file(name).unlink(missing_ok=True)
            self._save()

    def leftovers(self) -> dict[str, psutil.Process]:
        """The processes that an earlier supervisor of this home started and that still live, by name."""
        try:
            remembered = json.loads(self._file.read_text())
            entries = [(str(name), int(pid), str(born)) for name, (pid, born) in remembered.items()]
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # no earlier start, or a file that a crash left broken: then nobody can be known for certain
        return {name: process for name, pid, born in entries if (process := _living(pid, born))}

    def clear(self) -> None:
        """Remove every process id file: what they name has ended or was never ours."""
        for path in self._home.run.glob("*.pid"):
            path.unlink(missing_ok=True)
        self._born.clear()
        self._save()

    def _save(self) -> None:
        write_private_json(self._file, self._born)


def birth(pid: int) -> str:
    """When the process was born, in a form that no other process of this id ever has. NoSuchProcess (psutil).

    On Linux in ticks since the machine's own start, proc(5), field 22 of `stat`: a date would move with the clock.
    """
    if sys.platform != "linux":
        return str(psutil.Process(pid).create_time())
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"


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
    while (processes := [one for one in processes if _lives(one)]) and time.monotonic() < until:
        time.sleep(0.02)
    return processes


def _lives(process: psutil.Process) -> bool:
    """A zombie does not: it waits for its parent, which is not always us."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _living(pid: int, born: str) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if pid != os.getpid() and birth(pid) == born and _lives(process) else None
    except psutil.NoSuchProcess:
        return None


def _signal_group(process: psutil.Process, number: signal.Signals) -> None:
    """Each child leads a group of its own; `is_running` looks at the birth once more before the signal."""
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if not process.is_running():
            return
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
