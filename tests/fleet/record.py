"""What the server saw: connections, requests, counts. Bounded; the oldest goes first."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any, Literal

import msgspec

BODY_LIMIT = 65_536  # bytes kept of one request body
BODIES_LIMIT = 67_108_864  # bytes kept of all request bodies
ENTRIES = 10_000
PATHS = 1_000  # different paths that are counted by name

Ending = Literal["", "completed", "client_closed", "killed", "server_closed"]


class Exchange(msgspec.Struct, tag_field="what", tag="request"):
    """One request and what became of it. ``*_at`` are monotonic seconds of this machine, ``wall`` is since 1970.

    ``ended``: empty while it runs, ``completed`` (the answer went out whole), ``client_closed`` (it left before), or
    ``killed`` (a behaviour cut it).
    """

    id: int
    connection: int
    method: str
    path: str
    wall: float
    begun_at: float
    headers: dict[str, str] = {}
    body: str = ""  # at most BODY_LIMIT bytes of it; what is no UTF-8 shows as U+FFFD
    body_bytes: int = 0  # how long it truly was
    read_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None
    ended: Ending = ""
    status: int = 0
    bytes_sent: int = 0
    events_sent: int = 0
    chunks_sent: int = 0
    behaviours: list[str] = []

    def json(self) -> Any:
        """The request body decoded."""
        return msgspec.json.decode(self.body)


class Visit(msgspec.Struct, tag_field="what", tag="connection"):
    """One connection. ``ended``: empty while open, ``client_closed``, ``server_closed`` or ``killed``."""

    id: int
    peer: str
    wall: float
    opened_at: float
    ended_at: float | None = None
    ended: Ending = ""
    requests: int = 0


class State(msgspec.Struct):
    """Counts since the start or the last ``DELETE /fleet/log``; ``cancelled`` are requests whose client left."""

    listener: str = "open"
    open_connections: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    connections: int = 0
    requests: int = 0
    completed: int = 0
    cancelled: int = 0
    killed: int = 0
    paths: dict[str, int] = {}


class Record:
    """The log and the counts of one server."""

    def __init__(self) -> None:
        self.exchanges: deque[Exchange] = deque()
        self.visits: deque[Visit] = deque()
        self.open_connections = 0
        self._working: set[int] = set()
        self._last_id = 0
        self._bodies = 0
        self.clear()

    def clear(self) -> None:
        """Forget what has ended; what still runs stays."""
        self.exchanges = deque(exchange for exchange in self.exchanges if not exchange.ended)
        self.visits = deque(visit for visit in self.visits if not visit.ended)
        self._bodies = sum(len(exchange.body) for exchange in self.exchanges)
        self.peak_in_flight = self.in_flight
        self.connections = self.open_connections
        self.requests = self.in_flight
        self.ended: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()

    def connected(self, peer: str) -> Visit:
        """A connection was accepted."""
        self._last_id += 1
        visit = Visit(self._last_id, peer, time.time(), time.monotonic())
        self.visits.append(visit)
        if len(self.visits) > ENTRIES:
            self.visits.popleft()
        self.connections += 1
        self.open_connections += 1
        return visit

    def disconnected(self, visit: Visit, ended: Ending) -> None:
        """A connection is over; only the first call counts."""
        if not visit.ended:
            visit.ended, visit.ended_at = ended, time.monotonic()
            self.open_connections -= 1

    def begun(self, visit: Visit, method: str, path: str, headers: dict[str, str]) -> Exchange:
        """The head of a request was read."""
        self._last_id += 1
        exchange = Exchange(self._last_id, visit.id, method, path, time.time(), time.monotonic(), headers)
        visit.requests += 1
        self.exchanges.append(exchange)
        while len(self.exchanges) > ENTRIES or self._bodies > BODIES_LIMIT:
            self._bodies -= len(self.exchanges.popleft().body)
        self.requests += 1
        if path in self.paths or len(self.paths) < PATHS:
            self.paths[path] += 1
        return exchange

    def read(self, exchange: Exchange, body: bytes, size: int) -> None:
        """The body was read to its end; it had ``size`` bytes."""
        exchange.read_at = time.monotonic()
        exchange.body_bytes = size
        exchange.body = body[:BODY_LIMIT].decode(errors="replace")
        self._bodies += len(exchange.body)

    def working(self, exchange: Exchange) -> None:
        """The answer begins: from now on the request is in flight."""
        self._working.add(exchange.id)
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return len(self._working)

    def finished(self, exchange: Exchange, ended: Ending) -> None:
        """The request is over; only the first call counts."""
        if not exchange.ended:
            exchange.ended, exchange.ended_at = ended, time.monotonic()
            self._working.discard(exchange.id)
            self.ended[ended] += 1

    def state(self, listener: str) -> State:
        """The counts now."""
        return State(
            listener,
            self.open_connections,
            self.in_flight,
            self.peak_in_flight,
            self.connections,
            self.requests,
            self.ended["completed"],
            self.ended["client_closed"],
            self.ended["killed"],
            dict(self.paths),
        )
