"""Whether a Citadel that bin/run started works in a home, by what it leaves in `run/`: for all who ask from outside."""

from collections.abc import Mapping
from pathlib import Path

import psutil

from citadel import config
from citadel.sections import Config

CLOCK_STEP = 5.0
"""Seconds after which a process that is younger than the file of its id is another one."""
STOPPING = "stopping"
"""The file in `run/` that is there while Citadel stops; it says how many seconds running answers have."""


def lives(file: Path) -> bool:
    """Whether the process lives whose id stands in `file`, one of `run/*.pid`."""
    try:
        process = psutil.Process(int(file.read_text()))
        born_later = process.create_time() > file.stat().st_mtime + CLOCK_STEP
        return process.status() != psutil.STATUS_ZOMBIE and not born_later
    except (psutil.NoSuchProcess, FileNotFoundError, ValueError):
        return False


def runs(home: Path) -> bool:
    """Whether a Citadel works there, one that starts or stops included."""
    return lives(home / "run" / "supervisor.pid")


def sign(home: Path, name: str) -> Path:
    """The file by which the process NAME says, to whoever started it, that it is ready; that one removes it before."""
    return home / "run" / f"{name}.ready"


def tell_ready(home: Path, name: str) -> None:
    """Leaves that sign, where there is a folder for it."""
    file = sign(home, name)
    if file.parent.is_dir():
        file.touch()


def settings(environ: Mapping[str, str]) -> Config:
    """The configuration, without addresses that a Citadel has left behind which was killed; ConfigError."""
    tree, origins = config.read(environ)
    told = [path for path in config.PLAIN_NAMES.values() if origins.get(path) == str(tree.home / config.SERVICES)]
    return tree.model_copy(update=dict.fromkeys(told)) if told and not runs(tree.home) else tree


def stopping(home: Path) -> str | None:
    """What is to be told of the Citadel there when it stops; None when it does not."""
    try:
        seconds = float((home / "run" / STOPPING).read_text())
        pid = int((home / "run" / "supervisor.pid").read_text())
    except (OSError, ValueError):
        return None
    if not runs(home):  # it was killed while it stopped
        return None
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
