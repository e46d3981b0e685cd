"""What a Citadel has written into its security log."""

import json
import time
from collections.abc import Iterator
from typing import Any

from tests.instance import Instance, whole_lines

Line = dict[str, Any]
OF_SECURITY = b'"citadel.security"'
"""Stands in each of its lines."""
WITHIN = 5.0
"""Seconds in which a line is there."""


def lines(citadel: Instance) -> Iterator[Line]:
    """All of its web workers."""
    for log in citadel.home.glob("logs/web-*.log"):
        for line in whole_lines(log.read_bytes()):
            if OF_SECURITY in line:
                yield json.loads(line)


def told(citadel: Instance, within: float = WITHIN, **details: Any) -> list[Line]:
    """Those that say this, as soon as there is one."""
    deadline = time.monotonic() + within
    while True:
        found = [line for line in lines(citadel) if details.items() <= line.items()]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)
