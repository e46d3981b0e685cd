"""The folder that one embedded Citadel lives in (`CITADEL_HOME`): who may see it, and who works in it now."""

import fcntl
import json
import os
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from citadel import presence

REFUSED_KEY = "refused_api_key"
"""What `first-run.json` calls its key, `api_key` otherwise, once that is revoked or has expired."""


class StartError(Exception):
    """Citadel can't start or go on; the message tells the person at the terminal what is wrong and what to do."""


@dataclass(frozen=True)
class Home:
    """The layout under `CITADEL_HOME`, an absolute path."""

    path: Path

    @property
    def run(self) -> Path:
        """What is true only while Citadel runs: process ids, sockets, addresses."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """One file of output a process."""
        return self.path / "logs"

    @property
    def services(self) -> Path:
        """The addresses of the running services, for other programs of the same user."""
        return self.run / "services.json"

    @property
    def started_with(self) -> Path:
        """The settings in the environment that this Citadel was started with, secrets left out, for the same."""
        return self.run / "environment.json"

    @property
    def stopping(self) -> Path:
        """Is there while this Citadel stops, for whoever asks it something then."""
        return self.run / presence.STOPPING

    @property
    def first_run(self) -> Path:
        """What the first start left for the operator: addresses, login, API key."""
        return self.path / "first-run.json"

    @property
    def unseen(self) -> Path:
        """Is there until what a first start left has been printed."""
        return self.path / "first-run.unseen"

    def log(self, name: str) -> Path:
        """The log file of the process NAME."""
        return self.logs / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        """The file that holds the process id of NAME."""
        return self.run / f"{name}.pid"

    def _make_place_for_settings(self) -> None:
        """For the file that an operator may write: the folder is his, and where he made it himself it stays so."""
        with suppress(OSError):
            (self.path / "config" / "global").mkdir(mode=0o700, parents=True)

    def prepare(self) -> None:
        """Make the folders, closed to other users (mode 700). StartError when the folder is not ours to use."""
        try:
            self._refuse_others()
            for folder in (self.path, self.run, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_mode & 0o077:
                    folder.chmod(0o700)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(folder))
            self._make_place_for_settings()
        except OSError as error:
            raise StartError(
                f"Cannot use {self.path} as Citadel's folder: {error.strerror} ({error.filename}). Run Citadel as the "
                "user who owns it, or set CITADEL_HOME to a folder of yours."
            ) from None

    def _refuse_others(self) -> None:
        """StartError when the folder is there, open to other users, and not Citadel's: to close it would lock them out.

        An empty one is taken, and one in which only settings were laid down before the first start.
        """
        if not self.path.exists():
            return
        mode, has = self.path.stat().st_mode, {entry.name for entry in self.path.iterdir()}
        is_ours = has <= {"config"} or self._lock.exists()
        if mode & 0o077 and (mode & stat.S_ISVTX or not is_ours):
            raise StartError(
                f"{self.path} is open to other users and not Citadel's alone, so that Citadel can't close it for its "
                f"secrets. Name a folder of its own: CITADEL_HOME={shlex.quote(f'{self.path}/citadel')} bin/run"
            )

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Hold this home for this process alone; the kernel lets go of it at any death of ours.

        StartError when another Citadel works in it.
        """
        with self._lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StartError(self._who_is_here()) from None
            yield

    @property
    def _lock(self) -> Path:
        """Held by whoever works here; once made it stays."""
        return self.run / "supervisor.lock"

    def _who_is_here(self) -> str:
        if sentence := presence.stopping(self.path):
            return f"The Citadel in {self.path} has not ended yet: {sentence}. Then start it again."
        try:
            pid = int(self.pid_file("supervisor").read_text())
        except (OSError, ValueError):
            return f"Citadel runs already in {self.path}. Stop it first, or set CITADEL_HOME to another folder."
        return (
            f"Citadel runs already in {self.path} (process {pid}). Stop it with Ctrl-C there or with: kill {pid}\n"
            "A second one on this machine needs a folder and a free port of its own, such as: "
            "CITADEL_HOME=/another/folder CITADEL_SERVER__PORT=9000 bin/run"
        )


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, on the disk, readable by its owner alone: nobody ever sees half of it."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(os.fsencode(text))  # as the file system has the names that may stand in it
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def write_private_json(path: Path, values: Mapping[str, object]) -> None:
    """The same, for a JSON object."""
    write_private(path, json.dumps(values, indent=2) + "\n")
