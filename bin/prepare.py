"""Has the repository's virtual environment `.venv` ready: `python prepare.py [--python-was-chosen] REQUIREMENTS …`.

The environment is made with the Python that runs this, when there is none, when its Python is gone or too old, when an
earlier run was interrupted in it (a package may be there by half then), or when the operator chose a Python of another
version. Each file of requirements is installed when it has changed since it was last. Only the standard library is
used, and only what every Python from 3.11 on has. Two runs at a time wait for each other.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv"
PYTHON = FOLDER / "bin" / "python"
# Is there while something changes in the environment; found at a start, it tells of an interruption.
UNFINISHED = FOLDER / ".unfinished"
TELL_EVERY = 10  # seconds
# Packages of models say that they need whole frameworks, of which Citadel uses nothing.
WITHOUT_DEPENDENCIES = frozenset({"requirements-demo.txt"})


def main() -> None:
    """Do what the module says; exits with a message when a part can't be installed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--python-was-chosen", action="store_true")
    arguments.add_argument("requirements", nargs="*")
    options = arguments.parse_args()
    with alone():
        wrong = what_is_wrong(options.python_was_chosen)
        if wrong:
            make(wrong)
        for name in options.requirements:
            install(ROOT / name)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock on the repository's environment, which the kernel takes back at any end of this process."""
    folder = os.open(ROOT / "bin", os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another start prepares the Python environment; waiting for it ...")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def what_is_wrong(python_was_chosen: bool) -> str | None:
    """Why the environment must be made anew; None when it is good."""
    if not FOLDER.exists():
        return "is not there yet"
    if UNFINISHED.exists():
        return "was left unfinished"
    version = its_version()
    if not version:
        return "does not run any more"
    if version < (3, 11):
        return "has a Python that is too old"
    if python_was_chosen and version != sys.version_info[:2]:
        return "has another version of Python than the chosen one"
    return None


def its_version() -> tuple[int, ...] | None:
    """The version of the environment's Python; None when it does not run or has no pip."""
    if Path(sys.prefix) == FOLDER:  # then it is the one that runs this
        return sys.version_info[:2] if find_spec("pip") else None
    try:
        question = "import sys, pip; print(*sys.version_info[:2])"
        said = subprocess.run(  # noqa: S603 - our own environment's Python
            [PYTHON, "-c", question], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(int(part) for part in said.split())


def make(reason: str) -> None:
    """Make the environment from nothing."""
    say(f"Python environment {FOLDER} {reason}; making it with Python {sys.version.split()[0]} ...")
    if FOLDER.is_symlink():
        FOLDER.unlink()
    elif FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    UNFINISHED.touch()
    venv.create(FOLDER, with_pip=True, symlinks=True)
    UNFINISHED.unlink()


def install(requirements: Path) -> None:
    """Install a file of pinned requirements unless it is what was installed last."""
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    installed = FOLDER / f".installed-{requirements.stem}"
    if installed.exists() and installed.read_text() == digest:
        return
    say(f"Installing {requirements.name} (once; later starts skip this) ...")
    dependencies = ["--no-deps"] if requirements.name in WITHOUT_DEPENDENCIES else []
    UNFINISHED.touch()
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-warn-conflicts"]
    scratch = FOLDER / "tmp"  # of which nothing may be left elsewhere, when the terminal is closed in the midst of it
    scratch.mkdir(exist_ok=True)
    running = subprocess.Popen(  # noqa: S603 - our own environment's pip
        [*pip, "--quiet", *dependencies, "-r", str(requirements)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    code = tell_progress(running)
    shutil.rmtree(scratch, ignore_errors=True)
    if code:
        sys.exit(
            f"\nInstalling {requirements.name} failed; what pip said stands above. The next start begins anew. If the "
            "network is the trouble, pip's own settings (PIP_INDEX_URL, PIP_PROXY, PIP_CERT) are honoured."
        )
    installed.write_text(digest)
    UNFINISHED.unlink()


def tell_progress(running: subprocess.Popen[bytes]) -> int:
    """Say every few seconds what has come so far, until it has ended; its exit code."""
    begun = time.monotonic()
    while True:
        try:
            return running.wait(TELL_EVERY)
        except subprocess.TimeoutExpired:
            say(f"  {time.monotonic() - begun:.0f} s, {size(FOLDER) / 1e6:.0f} MB so far")


def size(folder: Path) -> int:
    """The bytes of all files in a folder, while others come and go."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(path, name).lstat().st_size
    return total


def say(line: str) -> None:
    """Tell the person at the terminal; standard output is the command's own, which a script may keep."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next start takes up what is not finished.")
    except OSError as error:
        sys.exit(f"The Python environment {FOLDER} can't be prepared: {error}")
