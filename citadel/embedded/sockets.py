"""Where the private Unix sockets lie: their paths are short by law of the kernel, homes need not be."""

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from citadel.embedded.home import Home, StartError

# sockaddr_un holds 108 bytes on Linux, 104 on macOS, one of them the closing zero.
LONGEST_PATH = 103
LONGEST_NAME = len("/pg/.s.PGSQL.5432.lock")


def folder(home: Home) -> Path:
    """A folder for sockets that only this user can enter: `run/` in the home, or a short one where that won't do.

    The short one has the same name at every start, unless someone else was there first. It is made anew when a cleaner
    of temporary files took it away; StartError when another user was faster than that.
    """
    place = _place(home)
    place.mkdir(mode=0o700, exist_ok=True)
    if not _private(place):
        raise StartError(
            f"{place}, where Citadel's sockets belong, is another user's now. Stop Citadel and start it anew."
        )
    return place


def remove(home: Home) -> None:
    """Take the sockets away, which nobody listens on any more."""
    place = folder(home)
    if place != home.run:
        shutil.rmtree(place)


@cache
def _place(home: Home) -> Path:
    # PostgreSQL and its clients take a list of folders, in which these two characters have a meaning.
    if len(os.fsencode(home.run)) + LONGEST_NAME <= LONGEST_PATH and not set(',"') & set(str(home.run)):
        return home.run
    digest = hashlib.sha256(os.fsencode(home.path)).hexdigest()[:12]
    short = Path(_temporary()) / f"citadel-{os.geteuid()}-{digest}"
    with suppress(FileExistsError):
        short.mkdir(mode=0o700)
    return short if _private(short) else Path(tempfile.mkdtemp(prefix="citadel-", dir=_temporary()))


def _temporary() -> str:
    """The user's own folder for temporary things, as long as it is short enough itself."""
    wanted = tempfile.gettempdir()
    return wanted if len(os.fsencode(wanted)) <= 40 else "/tmp"  # noqa: S108 - the folder in it is private


def _private(path: Path) -> bool:
    """Whether it is a real folder of ours that nobody else may enter."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
