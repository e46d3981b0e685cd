"""The fleet as it happens: one worker's ear on the events and its eyes on the servers, for all who watch there.

Both begin with the first who watches and end with the last.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping
from contextvars import Context
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from apps.orchestration.events import CHANNEL, Kept
from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import Record
from apps.orchestration.messages import EventsLive, EventTooLarge, ServerGone, ServerStatus, Snapshot, Standing
from apps.orchestration.requests import Worker
from apps.orchestration.watcher import Told, Watcher
from citadel.logs import Trouble

log = structlog.get_logger("citadel.live")

LARGEST = 64 * 1024
"""Bytes of a message."""
LOOK_EVERY = 0.25
"""Seconds between two looks at the servers."""
POLL = 5.0
"""Seconds after which the database is asked though it has told nothing: the connection may be dead, or no ear."""
RETRY = 1.0
TIMEOUT = 5.0
PAGE = 20
"""Events that are read at once: a slow reader makes us keep so many."""

_SHORT = f"id, type, server_id, at, CASE WHEN octet_length(data::text) <= {LARGEST} THEN data END"
_SOME = f"SELECT {_SHORT} FROM orchestration_event WHERE id = ANY(%s) ORDER BY id"  # noqa: S608  # constants alone
_LATER = f"SELECT {_SHORT} FROM orchestration_event WHERE id > %s ORDER BY id LIMIT {PAGE}"  # noqa: S608  # likewise
_LATEST = "SELECT coalesce(max(id), 0) FROM orchestration_event"

_AWAY = msgspec.json.encode(EventsLive(live=False))


class Feed:
    """One worker's."""

    def __init__(self, worker: Worker, database_url: str):
        self._worker = worker
        self._url = database_url
        self._watchers: set[Watcher] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._hears: bool | None = None
        """Whether the database tells events; None until that is known."""
        self._latest = 0
        self._seen: tuple[object, object] | None = None
        self._standings: Mapping[str, Standing] = {}

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    def join(self, since: int | None) -> Watcher:
        """Somebody begins to watch."""
        watcher = Watcher(since)
        self._watchers.add(watcher)
        if not self._tasks:
            self._look()
            self._tasks = [self._spawn(self._listen()), self._spawn(self._look_on())]
        if self._hears:
            watcher.catch_up(self._latest)
        elif self._hears is False:
            watcher.tell_away(_AWAY)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Somebody watches no more."""
        self._watchers.discard(watcher)
        if not self._watchers:
            self._rest()

    async def stop(self) -> None:
        """Lets go of all who watch."""
        tasks = self._tasks
        self._let_go()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def messages(self, watcher: Watcher) -> AsyncGenerator[bytes, None]:
        """All that somebody is told: how the servers are, and then whatever happens."""
        for raw in snapshot(self._standings.values()):
            yield raw
        while True:
            await watcher.news()
            for raw in watcher.waiting():
                yield raw
            if watcher.is_behind:
                async for raw in self._missed(watcher):
                    yield raw

    async def _missed(self, watcher: Watcher) -> AsyncGenerator[bytes, None]:
        """The events that somebody has missed; where the database is away they are read when it is back."""
        low, since = watcher.resume()
        if since is not None:
            yield msgspec.json.encode(EventsLive(live=True, since=since))
        full = True
        while full:
            try:
                async with self._worker.pool.connection(timeout=TIMEOUT) as connection:
                    rows = await (await connection.execute(_LATER, (low,))).fetchall()
            except (psycopg.Error, OSError):
                await asyncio.sleep(RETRY)
                watcher.catch_up(self._latest)
                return
            for event in map(Kept._make, rows):
                low = event.id
                for raw in watcher.new(message_of(event)):
                    yield raw
            full = len(rows) == PAGE

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self._look()

    def _look(self) -> None:
        """Tells which servers are another way than at the last look."""
        fleet, records = self._worker.fleet, self._worker.watch.records
        if self._seen and self._seen[0] is fleet and self._seen[1] is records:
            return
        before, self._seen = self._standings, (fleet, records)
        known = self._worker.watch.known()
        self._standings = {name: standing(one, known.record(name)) for name, one in fleet.servers.items()}
        for name, now in self._standings.items():
            if before.get(name) != now:
                self._tell_server(name, ServerStatus(**msgspec.structs.asdict(now)))
        for name in before.keys() - self._standings.keys():
            self._tell_server(name, ServerGone(name))

    def _tell_server(self, server_id: str, message: ServerStatus | ServerGone) -> None:
        raw = msgspec.json.encode(message)
        for watcher in self._watchers:
            watcher.tell_server(server_id, raw)

    async def _listen(self) -> None:
        absence = Trouble()
        while True:
            try:
                async with await AsyncConnection.connect(
                    self._url, autocommit=True, connect_timeout=int(TIMEOUT), application_name="citadel-events"
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    absence.is_over()
                    await self._hear(connection)
            except (psycopg.Error, OSError) as error:
                if absence.is_news():
                    log.warning("events_out_of_reach", reason=type(error).__name__)
            self._hears = False
            for watcher in self._watchers:
                watcher.tell_away(_AWAY)
            await asyncio.sleep(RETRY)

    async def _hear(self, connection: AsyncConnection[TupleRow]) -> None:
        """Tells what the database tells, until it doesn't answer any more: psycopg.Error or TimeoutError."""
        while True:
            async with asyncio.timeout(TIMEOUT):
                latest = await (await connection.execute(_LATEST)).fetchone()
            self._catch_up(latest[0] if latest else 0)
            while ids := [int(note.payload) async for note in connection.notifies(timeout=POLL, stop_after=1)]:
                for start in range(0, len(ids), PAGE):
                    async with asyncio.timeout(TIMEOUT):
                        rows = await (await connection.execute(_SOME, (ids[start : start + PAGE],))).fetchall()
                    self._tell_events(map(Kept._make, rows))

    def _catch_up(self, latest: int) -> None:
        """Has all read who may have missed an event, at the beginning or because the database has not told it."""
        if self._hears and latest <= self._latest:
            return
        self._hears, self._latest = True, max(latest, self._latest)
        for watcher in self._watchers:
            watcher.catch_up(self._latest)

    def _tell_events(self, events: Iterable[Kept]) -> None:
        for event in events:
            self._latest = max(self._latest, event.id)
            told = message_of(event)
            for watcher in self._watchers:
                watcher.tell_event(told)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        # In a context of its own: it outlasts the request that began it.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Who watches would take silence for peace: without ears or eyes they are let go, and come anew."""
        if not task.cancelled():
            log.error("feed_failed", exc_info=task.exception())
            self._let_go()

    def _let_go(self) -> None:
        for watcher in self._watchers:
            watcher.lost.set()
        self._watchers.clear()
        self._rest()

    def _rest(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks, self._hears = [], None


def standing(server: Server, record: Record) -> Standing:
    """How a server is, as it stands on the board."""
    since = record.since / 1000 if record.since else None
    return Standing(server.server_id, server.state, record.status, record.finder, record.reason, since)


def snapshot(servers: Iterable[Standing]) -> Iterator[bytes]:
    """All servers, in as many messages as that takes."""
    some: list[Standing] = []
    size = 0
    for one in servers:
        length = len(msgspec.json.encode(one)) + 1
        if size + length > LARGEST - len(msgspec.json.encode(Snapshot([], more=False))):
            yield msgspec.json.encode(Snapshot(some, more=True))
            some, size = [], 0
        some.append(one)
        size += length
    yield msgspec.json.encode(Snapshot(some, more=False))


def message_of(event: Kept) -> Told:
    """An event as a message, or as word of it where it is too large for one."""
    raw = msgspec.json.encode(event._asdict())
    if event.data is None or len(raw) > LARGEST:
        raw = msgspec.json.encode(EventTooLarge(event.id, event.server_id, event.type))
    return Told(event.id, raw)
