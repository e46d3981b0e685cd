"""Log files that stay bounded: the children write, the supervisor turns them over."""

import shutil
from pathlib import Path

LARGEST_BYTES = 10 * 1024 * 1024
OLD_FILES = 3
TAIL_BYTES = 4096


def turn_over(folder: Path, largest: int = LARGEST_BYTES, old_files: int = OLD_FILES) -> None:
    """Turn each `NAME.log` over LARGEST bytes into `NAME.log.1` … `NAME.log.OLD_FILES` and empty it.

    The file is copied and emptied in place, since children hold it open (for appending: their next line lands at the
    new end). What a child writes in the instant between the two is lost, which is the price of not being in its way.
    """
    for log in folder.glob("*.log"):
        if log.stat().st_size <= largest:
            continue
        for number in range(old_files - 1, 0, -1):
            older = log.with_name(f"{log.name}.{number}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number + 1}"))
        shutil.copy2(log, log.with_name(f"{log.name}.1"))
        with log.open("r+b") as file:
            file.truncate(0)


def tail(log: Path, lines: int = 12, since: int = 0) -> str:
    """The last LINES of a log, of what stands after the byte SINCE; empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(since if since <= end else 0, end - TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
