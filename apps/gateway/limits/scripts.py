"""The scripts in Redis that count requests and give places, put together of the files beside this one."""

from pathlib import Path

from citadel.redis import Script

PARTS = ("workers.lua", "places.lua")
"""What all scripts about places begin with."""


def script(*names: str) -> Script:
    """A script about places, of files beside this one."""
    return Script("".join((Path(__file__).parent / name).read_text() for name in (*PARTS, *names)))


ADMIT, IN_USE = script("windows.lua", "budgets.lua", "nonces.lua", "admit.lua"), script("in_use.lua")
GUARD, USE_UP = script("windows.lua", "guard.lua"), script("nonces.lua", "use_up.lua")
RENAME, SWEEP = script("rename.lua"), script("sweep.lua")
