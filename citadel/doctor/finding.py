"""What a check finds."""

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "broken"]


class Finding(NamedTuple):
    """One thing that was looked at: how it is and, where it isn't well, how to mend it."""

    level: Level
    what: str
    mend: str = ""


def well(what: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", what)


def doubtful(what: str, mend: str) -> Finding:
    """It works, but not as it should, or not for long."""
    return Finding("warning", what, mend)


def broken(what: str, mend: str) -> Finding:
    """It does not work."""
    return Finding("broken", what, mend)
