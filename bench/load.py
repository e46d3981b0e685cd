"""The load generator: one process, one core, closed loop or open loop.

Closed: each of C connections sends its next request when the answer to the last one is whole; time counts from sending,
when the request has been put together and signed: what that costs is the client's own.
Open: requests are due at a fixed rate, whatever the answers do; time counts from when a request was *due*, so a server
that stalls is charged for every request that had to wait (no coordinated omission).
For streams the times are those of the first byte, units are events, and the longest gap between two reads is kept.

Try it by itself: ``python -m bench.load http://127.0.0.1:9000 chat --connections 16 --seconds 5``. The key, where one
is needed, is read from ``BENCH_API_KEY``, and the signing secret for a workload that is signed from
``BENCH_SIGNING_SECRET``. The result is one line of JSON.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from time import perf_counter_ns
from urllib.parse import urlsplit

import msgspec
import uvloop

from bench.answers import NUMBER_DIGITS
from bench.connection import Connection
from bench.measurement import Result, Tally
from bench.signing import signer
from bench.usage import readings
from bench.workloads import WORKLOADS, Kind

GRACE_SECONDS = 30.0
RECONNECT_SECONDS = 0.05


class Plan(msgspec.Struct, frozen=True):
    """What to send: for ``seconds``, or ``count`` requests if that is above 0; ``rate`` above 0 makes it an open loop.

    The process ids in ``watch`` are those whose processor time and memory the result tells.
    """

    url: str
    workload: str
    connections: int = 16
    seconds: float = 5.0
    warmup: float = 0.0
    count: int = 0
    rate: float = 0.0
    watch: tuple[int, ...] = ()


class Load(ABC):
    """One run of a plan: sends through its connections and tallies what comes back."""

    def __init__(self, plan: Plan, key: str, secret: str) -> None:
        """Take the plan, and the API key and the signing secret (empty for none)."""
        self.plan = plan
        self.workload = WORKLOADS[plan.workload]
        self.is_stream = self.workload.kind is Kind.STREAM
        self.address = urlsplit(plan.url)
        self.host, self.port = self.address.hostname or "127.0.0.1", self.address.port or 80
        path = f"{self.address.path.rstrip('/')}{self.workload.path}"
        form = self.workload.form
        self.sign = signer(form, secret, path, f"http://{self.address.netloc}{path}") if form else None
        self.head, self.signed_head = self._head(path, key), self._head(path, "")
        self.next_number = random.randrange(10**NUMBER_DIGITS // 2) if self.workload.distinct else 0
        self.tally = Tally()
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.reconnects: set[asyncio.Task[None]] = set()
        self.sent = self.pending = 0
        self.is_sending = True
        self.is_closed = False
        self.all_answered = asyncio.Event()

    def _head(self, path: str, key: str) -> bytes:
        """All of a request before its body, but for the empty line."""
        length = len(self.workload.before) + NUMBER_DIGITS + len(self.workload.after)
        lines = [
            f"POST {path} HTTP/1.1",
            f"host: {self.address.netloc}",
            "content-type: application/json",
            f"content-length: {length}",
            *([f"authorization: Bearer {key}"] if key else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n"

    async def run(self) -> Result:
        """Run the plan to its end and sum it up. Raise OSError when there is nobody to connect to."""
        for _ in range(self.plan.connections):
            await self.connect()
        before = readings(self.plan.watch)
        start = perf_counter_ns()
        self.begin(start)
        await self.drained()
        elapsed = (perf_counter_ns() - start) / 1e9
        after = readings(self.plan.watch)
        self.close()
        return self.tally.result(elapsed, {pid: after[pid].since(before[pid]) for pid in after if pid in before})

    @abstractmethod
    def begin(self, start: int) -> None:
        """Start sending; ``start`` is the time now (ns)."""

    @abstractmethod
    def idle(self, connection: Connection) -> None:
        """A connection is free for its next request."""

    def send(self, connection: Connection, intended: int = 0) -> None:
        """Send the next request through a free connection; its time starts when it was ``intended`` (ns), or now that
        it is ready.
        """
        number = b"%0*d" % (NUMBER_DIGITS, self.next_number)
        if self.workload.distinct:
            self.next_number += 1
        body = self.workload.before + number + self.workload.after
        connection.is_compared = bool(self.sign and self.sent % 2)
        if self.sign and not connection.is_compared:
            request = b"%b%b\r\n%b" % (self.signed_head, self.sign(body), body)
        else:
            request = b"%b\r\n%b" % (self.head, body)
        self.sent += 1
        self.pending += 1
        connection.send(request, number, intended or perf_counter_ns())

    def stop(self) -> None:
        """Send nothing more."""
        self.is_sending = False
        if not self.pending:
            self.all_answered.set()

    def settle(self) -> None:
        """One request less is pending."""
        self.pending -= 1
        if not self.pending and not self.is_sending:
            self.all_answered.set()

    async def drained(self) -> None:
        """Wait until all is sent and answered; give up when no answer has come for ``GRACE_SECONDS``."""
        seen = -1
        while seen != self.tally.requests:
            seen = self.tally.requests
            try:
                await asyncio.wait_for(self.all_answered.wait(), self.plan.seconds + GRACE_SECONDS)
            except TimeoutError:
                continue
            return
        for connection in self.connections:
            if connection.busy:
                self.tally.failed("no answer")

    def answered(self, connection: Connection, status: int, body: bytes, first_byte: int, last_byte: int) -> None:
        """Judge and count an answer."""
        units = self.workload.check(connection.number, body) if status == 200 else 0
        if units:
            latency = (first_byte if self.is_stream else last_byte) - connection.intended
            self.tally.answered(latency, units, is_compared=connection.is_compared)
        else:
            self.tally.failed("wrong content" if status == 200 else f"status {status}", body)
        self.settle()
        if not connection.transport.is_closing():
            self.idle(connection)

    def lost(self, connection: Connection, reason: str) -> None:
        """Count the request that its connection took along, and open another one."""
        if self.is_closed or connection not in self.connections:
            return
        self.forget(connection)
        if connection.busy:
            self.tally.failed(reason)
            self.settle()
        task = self.loop.create_task(self.reconnect())
        self.reconnects.add(task)
        task.add_done_callback(self.reconnects.discard)

    async def connect(self) -> Connection:
        """Open one more connection. Raise OSError when it is refused."""
        _, connection = await self.loop.create_connection(lambda: Connection(self), self.host, self.port)
        self.connections.add(connection)
        return connection

    async def reconnect(self) -> None:
        """Replace a lost connection, trying again while the run lasts."""
        while self.is_sending:
            try:
                connection = await self.connect()
            except OSError:
                self.tally.failed("connection refused")
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self.idle(connection)
            return

    def forget(self, connection: Connection) -> None:
        """Take over what a connection has counted."""
        self.connections.discard(connection)
        self.tally.bytes += connection.bytes
        self.tally.gap_max = max(self.tally.gap_max, connection.gap_max)

    def close(self) -> None:
        """Close all connections."""
        self.is_closed = True
        self.is_sending = False
        for connection in list(self.connections):
            self.forget(connection)
            connection.transport.abort()


class ClosedLoop(Load):
    """Each connection sends again as soon as it has its answer."""

    def begin(self, start: int) -> None:
        """Start on every connection."""
        if not self.plan.count:
            self.loop.call_later(self.plan.seconds, self.stop)
        for connection in list(self.connections):
            self.idle(connection)

    def idle(self, connection: Connection) -> None:
        """Send again, unless the time or the count is up."""
        if self.plan.count and self.sent >= self.plan.count:
            self.stop()
        elif self.is_sending:
            self.send(connection)


class OpenLoop(Load):
    """Requests are due at a fixed rate; one that finds no free connection waits, and its time runs.

    The clock of the event loop counts in milliseconds, so a thread of its own sleeps until each request is due.
    """

    def begin(self, start: int) -> None:
        """Start the thread that keeps the time."""
        self.free = deque(self.connections)
        self.backlog: deque[int] = deque()
        self.is_pacing = True
        threading.Thread(target=self.pace, args=(start,), daemon=True).start()

    def pace(self, start: int) -> None:
        """Tell the event loop when each request is due (in the thread)."""
        interval = 1e9 / self.plan.rate
        for i in range(self.plan.count or int(self.plan.rate * self.plan.seconds)):
            intended = start + int(i * interval)
            delay = intended - perf_counter_ns()
            if delay > 0:
                time.sleep(delay / 1e9)
            self.loop.call_soon_threadsafe(self.due, intended)
        self.loop.call_soon_threadsafe(self.paced)

    def due(self, intended: int) -> None:
        """Send what is due, or put it behind the others that wait."""
        while self.free:
            connection = self.free.popleft()
            if not connection.transport.is_closing():
                self.send(connection, intended)
                return
        self.backlog.append(intended)

    def paced(self) -> None:
        """Nothing more will be due."""
        self.is_pacing = False
        if not self.backlog:
            self.stop()

    def idle(self, connection: Connection) -> None:
        """Send what has waited longest, or wait."""
        if self.backlog:
            self.send(connection, self.backlog.popleft())
            if not self.backlog and not self.is_pacing:
                self.stop()
        else:
            self.free.append(connection)


async def execute(plan: Plan, key: str = "", secret: str = "") -> Result:
    """Warm up as long as the plan says, then run it."""
    loop = OpenLoop if plan.rate else ClosedLoop
    warmed = 0
    if plan.warmup:
        warming = msgspec.structs.replace(plan, seconds=plan.warmup, count=0, watch=())
        warmed = (await loop(warming, key, secret).run()).requests
    return msgspec.structs.replace(await loop(plan, key, secret).run(), warmup_requests=warmed)


def main() -> None:
    """Read the command line, run, and print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("workload", choices=sorted(WORKLOADS))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds before the measurement (0)")
    parser.add_argument("--count", type=int, default=0, help="requests to send, instead of a time")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, whatever the answers do")
    parser.add_argument("--watch", type=int, nargs="*", default=[], metavar="PID", help="tell what these take")
    plan = msgspec.convert(vars(parser.parse_args()), Plan)
    gc.disable()  # a collection here would be charged to the server
    credentials = os.environ.get("BENCH_API_KEY", ""), os.environ.get("BENCH_SIGNING_SECRET", "")
    result = uvloop.run(execute(plan, *credentials))
    json.dump(msgspec.to_builtins(result, str_keys=True), sys.stdout)  # NaN stays NaN when nothing was answered
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
