"""The processes of a run: started, pinned to their cores, waited for, measured and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
STOP_SECONDS = 15.0

_started: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True)
class Cores:
    """Which cores the server under test has to itself, and which ones everything else shares."""

    server: frozenset[int]
    rest: frozenset[int]

    @property
    def are_apart(self) -> bool:
        """Whether the server really has its core to itself."""
        return bool(self.server) and not self.server & self.rest


def cores() -> Cores:
    """Give the server the first core that we may use, and the rest the others; none where pinning is unknown."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(frozenset(), frozenset())
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(allowed[:1]), frozenset(allowed[1:] or allowed))


def pin(pid: int, to: frozenset[int]) -> None:
    """Keep all threads of a process, and those that it starts later, on these cores."""
    if not to:
        return
    for thread in psutil.Process(pid).threads():
        try:
            os.sched_setaffinity(thread.id, to)
        except ProcessLookupError:
            continue  # a thread that has ended since


def start(command: Sequence[str], to: frozenset[int], log: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a program on these cores, in a session of its own, its output in ``log``; return its process id.

    ``env`` is its whole environment, this process's own if it is left out.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _started[process.pid] = process
    pin(process.pid, to)
    return process.pid


def stop(pid: int) -> None:
    """End a program that ``start`` has started: politely, after ``STOP_SECONDS`` with everything below it."""
    process = _started.pop(pid)
    family = tree(pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for member in family:
            try:
                psutil.Process(member).kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()


def tree(pid: int) -> tuple[int, ...]:
    """Return a process and everything below it; nothing if it has ended."""
    try:
        process = psutil.Process(pid)
        return (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, pid: int, log: Path, seconds: float) -> None:
    """Wait until ``url`` answers 200. Raise RuntimeError with the log's end if the program ends or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if _started[pid].poll() is not None:
            raise RuntimeError(f"It ended with status {_started[pid].returncode} before {url} answered. {_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer 200 within {seconds:.0f} s. {_tail(log)}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return f"The end of {log}:\n" + "\n".join(lines)
