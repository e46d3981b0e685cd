"""Sets the date of one process, for tests: Python runs this at its start where the folder is on PYTHONPATH.

The folder that CLOCKS names has a file for each process whose date is off, called as the process is (`web-1`, `beat`
…), with the seconds in it; it is read at each question for the time, so that the clock can be set while it runs. The
monotonic clock is left alone, as a set date leaves it alone.
"""

import os
import sys
import time
from pathlib import Path


def _name() -> str:
    words = sys.orig_argv
    for option in ("--name", "--hostname"):
        if option in words:
            return words[words.index(option) + 1].partition("@")[0]
    return words[-1]


def _shift(clock: Path) -> None:
    file, real, real_ns = os.open(clock, os.O_RDONLY), time.time, time.time_ns
    time.time = lambda: real() + int(os.pread(file, 16, 0))
    time.time_ns = lambda: real_ns() + int(os.pread(file, 16, 0)) * 10**9
    clock.with_suffix(".set").touch()


if "CLOCKS" in os.environ and (Path(os.environ["CLOCKS"]) / _name()).is_file():
    _shift(Path(os.environ["CLOCKS"]) / _name())
