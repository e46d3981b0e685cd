"""What processes take: processor time, memory, and how long they had to wait for a core."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil


class Usage(msgspec.Struct, frozen=True):
    """What one process took while it was measured; ``starved_seconds`` it could have worked but had no core."""

    cpu_seconds: float
    starved_seconds: float
    rss_mb: float
    rss_before_mb: float


class Reading(msgspec.Struct, frozen=True):
    """The counters of one process at one moment; they run since it was started."""

    cpu_seconds: float
    starved_seconds: float
    rss_mb: float

    def since(self, before: "Reading") -> Usage:
        """Return what was taken between an earlier reading and this one."""
        return Usage(
            cpu_seconds=self.cpu_seconds - before.cpu_seconds,
            starved_seconds=self.starved_seconds - before.starved_seconds,
            rss_mb=self.rss_mb,
            rss_before_mb=before.rss_mb,
        )


def readings(pids: Iterable[int]) -> dict[int, Reading]:
    """Read the counters of each of these processes that exists."""
    found = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                spent = process.cpu_times()
                found[pid] = Reading(spent.user + spent.system, _starved(pid), process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return found


def _starved(pid: int) -> float:
    """Return the seconds that the threads of a process stood in a run queue; 0 where the kernel does not tell.

    Linux, Documentation/scheduler/sched-stats.rst: the second number of ``schedstat``, in nanoseconds.
    """
    waited = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            waited += int(file.read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended since
    return waited / 1e9
