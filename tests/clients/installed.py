"""Client packages that can't be in the development environment: an older release, and those of Node.

Each is installed once, into a folder of the environment that the tests run in, and found there by later runs, which
then need no network.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

OPENAI_1 = "openai==1.109.1"
OPENAI_NODE = "openai@7.57.0"

FOLDER = Path(sys.prefix) / "clients"
LIMIT = 300.0
"""Seconds that an installation may take."""


def for_python(requirement: str) -> Path:
    """A folder for PYTHONPATH with `requirement` and all that it needs."""

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--target", str(folder), requirement])

    return _once(requirement, install)


def for_node(requirement: str) -> Path:
    """A folder with `node_modules` that holds `requirement`."""

    def install(folder: Path) -> None:
        _run(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error", requirement])

    return _once(requirement, install)


def _once(requirement: str, install: Callable[[Path], None]) -> Path:
    """The folder of a requirement, complete or not there at all, whoever else installs it at the same time."""
    FOLDER.mkdir(exist_ok=True)
    folder = FOLDER / requirement
    with filelock.FileLock(FOLDER / "lock"):
        if not folder.exists():
            draft = Path(tempfile.mkdtemp(dir=FOLDER))
            try:
                install(draft)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
