"""Whether a Citadel that bin/run started works in a home, by what it leaves in `run/`: for all who ask from outside."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from citadel import config
from citadel.sections import Config

PROCESSES = "processes.json"
"""The file in `run/` with the id and the birth of each process that bin/run started, by name, and of its own."""
STOPPING = "stopping"
"""The file in `run/` that is there while Citadel stops; it says how many seconds running answers have."""


def recorded(home: Path) -> dict[str, tuple[int, str]]:
    """What stands in that file: nothing when it is not there, or when a crash left it broken."""
    try:
        remembered = json.loads((home / "run" / PROCESSES).read_text())
        return {str(name): (int(pid), str(born)) for name, (pid, born) in remembered.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def living(pid: int, born: str) -> psutil.Process | None:
    """The process of this id if it is the one that was born then."""
    try:
        process = psutil.Process(pid)
        return process if birth(pid) == born and is_alive(process) else None
    except psutil.NoSuchProcess:
        return None


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


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: it waits for its parent, which is not always us."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lives(home: Path, name: str) -> bool:
    """Whether the process lives that bin/run started there under this name."""
    return _process(home, name) is not None


def runs(home: Path) -> bool:
    """Whether a Citadel works there, one that starts or stops included."""
    return lives(home, "supervisor")


def sign(home: Path, name: str) -> Path:
    """The file by which the process NAME says, to whoever started it, that it is ready; that one removes it before."""
    return home / "run" / f"{name}.ready"


def tell_ready(home: Path, name: str) -> None:
    """Leaves that sign, where there is a folder for it."""
    file = sign(home, name)
    if file.parent.is_dir():
        with suppress(OSError):  # who can't say so serves all the same
            file.touch()


def settings(environ: Mapping[str, str]) -> Config:
    """The configuration, without what a Citadel has left behind that was killed; ConfigError."""
    return config.read(environ, told=runs(config.home_folder(environ)))[0]


def stopping(home: Path) -> str | None:
    """What is to be told of the Citadel there when it stops; None when it does not."""
    try:
        seconds = float((home / "run" / STOPPING).read_text())
    except (OSError, ValueError):
        return None
    supervisor = _process(home, "supervisor")
    if supervisor is None:  # it was killed while it stopped
        return None
    pid = supervisor.pid
    return f"it is stopping (process {pid}), up to {seconds:g} s for running answers; kill -INT {pid} stops it at once"


def absence(home: Path) -> str:
    """Why a command finds no address of a Citadel there, and what to do about it."""
    if sentence := stopping(home):
        return f"The Citadel in {home} can't be asked any more: {sentence}"
    if runs(home):
        return f"The Citadel in {home} is starting; ask again in a moment"
    return (
        f"No Citadel runs in {home} and DATABASE_URL is not set. Start it with bin/run in another terminal, or set "
        "CITADEL_HOME to the folder of the one that runs."
    )


def _process(home: Path, name: str) -> psutil.Process | None:
    entry = recorded(home).get(name)
    return living(*entry) if entry else None
