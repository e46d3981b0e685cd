"""Start and steer test servers from a test.

    with Fleet.start(kind="vllm", models=["tiny"]) as server:       # or: async with
        server.behave("die chunk:3 rst", next=1)
        ...                                                         # talk to server.url
        [request] = server.wait_for(lambda log: [r for r in log if r.ended == "killed"])

Each server is a process of its own, so that it can be killed (``kill``), stopped (``stop``), continued (``cont``) and
started again on the same port (``restart``). They are forked off a process that has read all modules already, since a
run of tests starts thousands. Steering takes a millisecond and blocks for that long; in async tests wait with
``await server.until(...)`` instead of ``wait_for``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from . import __main__ as program
from .backend.config import Ability, Kind
from .listener import bound
from .record import Exchange, State, Visit
from .rules import Rule

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 20.0  # seconds
ADMIN_LIMIT = 10.0  # seconds
POLL_EVERY = 0.01  # seconds
LOG_SHOWN = 5  # entries in the message of a time-out
PROBE = "(probe)"  # the end of the name that probes have


def calls_of(log: Sequence[Exchange]) -> list[Exchange]:
    """Of the requests in a log those that ask for something to be worked out."""
    return [seen for seen in log if seen.method == "POST"]


class FleetError(Exception):
    """The server did not start, or refused what it was told; the message says why."""


class Fleet:
    """One test server process."""

    def __init__(self, options: Sequence[str], host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.admin_port = 0
        self._options = list(options)
        self._process: ForkServerProcess | None = None
        self._lead: Connection | None = None
        self._held: list[socket.socket] = []

    @classmethod
    def start(
        cls,
        kind: Kind = "openai",
        models: Sequence[str] = ("test-model",),
        *,
        tokens: int | None = None,
        dimensions: int | None = None,
        context_length: int | None = None,
        only: Ability | None = None,
        api_key: str | None = None,
        parallel: int | None = None,
        load_seconds: float | None = None,
        behave: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> Self:
        """A server that runs inside of ``with`` (or from ``open`` to ``close``). See ``--help`` for the values."""
        single = {
            "--tokens": tokens,
            "--dimensions": dimensions,
            "--context-length": context_length,
            "--only": only,
            "--api-key": api_key,
            "--parallel": parallel,
            "--load-seconds": load_seconds,
        }
        options = ["--kind", kind, "--host", host]
        options += [part for name in models for part in ("--model", name)]
        options += [part for name, value in single.items() if value is not None for part in (name, str(value))]
        options += [part for spec in behave for part in ("--behave", spec)]
        return cls(options, host)

    # Beginning and end

    def open(self) -> Self:
        """Start the process; gives the server when it listens. Raises FleetError."""
        if not self._held:
            # Held here as well, the ports are ours while the process is dead.
            self._held = [bound(self.host, self.port), bound(self.host, self.admin_port)]
            self.port, self.admin_port = (held.getsockname()[1] for held in self._held)
        ports = ["--port", str(self.port), "--admin-port", str(self.admin_port)]
        self._lead, its_end = multiprocessing.Pipe()
        self._process = _nursery().Process(target=_run, args=([*self._options, *ports], its_end), daemon=True)
        self._process.start()
        its_end.close()
        if not self._lead.poll(START_LIMIT) or not _received(self._lead):
            self._process.join(START_LIMIT)
            raise FleetError(f"the test server ended with {self._process.exitcode}; see standard error")
        return self

    def close(self) -> None:
        """End the process, also a stopped one, and give the ports back."""
        self.kill()
        for held in self._held:
            held.close()
        self._held = []

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.open)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # The process

    @property
    def url(self) -> str:
        """Where the backend is, without ``/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id."""
        pid = self._running().pid
        assert pid
        return pid

    @property
    def alive(self) -> bool:
        """Whether the process is there (also when it is stopped)."""
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.join()
        process.close()
        if self._lead:
            self._lead.close()

    def stop(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, nobody reads them."""
        self._send(SIGSTOP)

    def cont(self) -> None:
        """SIGCONT."""
        self._send(SIGCONT)

    def restart(self, *options: str) -> Self:
        """A new process on the same ports, with more options; the log and the behaviours of the old one are gone."""
        self.kill()
        self._options += options
        return self.open()

    def _send(self, signal: Signals) -> None:
        os.kill(self.pid, signal)

    def _running(self) -> ForkServerProcess:
        if self._process is None:
            raise FleetError("the test server is not running: it was killed or not started")
        return self._process

    # Behaviour

    def behave(
        self,
        do: str | dict[str, Any] = "",
        *,
        next: int | None = None,
        every: int | None = None,
        path: str | None = None,
        header: str | None = None,
        body: str | None = None,
    ) -> None:
        """Put a behaviour in force, see README.md; with nothing at all, behave well again. Raises FleetError."""
        rule = Rule(do=do, next=next, every=every, path=path, header=header, body=body)
        if not do and rule.is_default():
            self._admin("DELETE", "/fleet/behave")
        else:
            self._admin("POST", "/fleet/behave", msgspec.json.encode(rule))

    # What it saw

    def log(self, *, probes: bool = False) -> list[Exchange]:
        """The requests, oldest first; those by which Citadel looks how the server is only with `probes`."""
        log = msgspec.json.decode(self._admin("GET", "/fleet/log?what=requests"), type=list[Exchange])
        return [seen for seen in log if probes or not seen.headers.get("user-agent", "").endswith(PROBE)]

    def calls(self) -> list[Exchange]:
        """The requests without those that ask what the server is and has, which may come at any time."""
        return calls_of(self.log())

    def connections(self) -> list[Visit]:
        """The connections, oldest first."""
        return msgspec.json.decode(self._admin("GET", "/fleet/log?what=connections"), type=list[Visit])

    def state(self) -> State:
        """The counts."""
        return msgspec.json.decode(self._admin("GET", "/fleet/state"), type=State)

    def clear(self) -> None:
        """Empty the log and set the counts to nothing."""
        self._admin("DELETE", "/fleet/log")

    def wait_for(self, predicate: Callable[[list[Exchange]], T], timeout: float = 5.0) -> T:
        """What ``predicate`` gives for the log, once that is true; raises TimeoutError after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not (found := predicate(log := self.log())):
            if time.monotonic() > end:
                raise TimeoutError(_not_seen(timeout, log))
            time.sleep(POLL_EVERY)
        return found

    async def until(self, predicate: Callable[[list[Exchange]], T], timeout: float = 5.0) -> T:
        """``wait_for`` that lets the event loop run."""
        end = time.monotonic() + timeout
        while not (found := predicate(log := self.log())):
            if time.monotonic() > end:
                raise TimeoutError(_not_seen(timeout, log))
            await asyncio.sleep(POLL_EVERY)
        return found

    def wait_dead(self, timeout: float = 5.0) -> int:
        """Wait until the process has ended by itself (``die … exit``); gives its exit code, negative for a signal."""
        process = self._running()
        process.join(timeout)
        if process.exitcode is None:
            raise TimeoutError(f"the test server is still there after {timeout} s")
        return process.exitcode

    def _admin(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._running()
        connection = http.client.HTTPConnection(self.host, self.admin_port, timeout=ADMIN_LIMIT)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise FleetError(json.loads(answer)["error"])
        return answer


@functools.cache
def _nursery() -> ForkServerContext:
    """The process that servers are forked off, started where it finds the modules that it reads before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([program.__name__])
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return context


def _run(options: Sequence[str], lead: Connection) -> None:
    """What a forked server does: the program, for as long as somebody holds the other end of its lead."""
    raise SystemExit(program.run(program.arguments(options), lead))


def _received(lead: Connection) -> bool:
    """Whether the server has said that it listens; not if it has ended."""
    try:
        return bool(lead.recv())
    except EOFError:
        return False


def _not_seen(timeout: float, log: list[Exchange]) -> str:
    shown = "\n".join(str(entry) for entry in log[-LOG_SHOWN:]) or "(nothing)"
    return f"not seen within {timeout} s; the last of {len(log)} requests:\n{shown}"
