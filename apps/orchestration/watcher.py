"""Somebody who watches the fleet: what waits to be told, and which events were told already.

Nobody's memory grows with what it does not read. Of each server only its latest standing waits, and of events a few:
who is further behind gets them out of the database, by their ids, as does who was out of touch.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

EVENTS_WAITING = 100
OVERLAP = 500
"""An id is given before its event can be seen, so a lower one may come after a higher one, by about so many."""


class Told(NamedTuple):
    """An event, as a message."""

    event_id: int
    raw: bytes


class Watcher:
    """One of them; `since` is the id after which its events begin, None: with what happens from now on."""

    def __init__(self, since: int | None):
        self.lost = asyncio.Event()
        """Set when nothing more will be told."""
        self._begin = since
        self._position = since or 0
        """The highest id that was told."""
        self._recent: deque[int] = deque(maxlen=2 * OVERLAP)
        self._servers: dict[str, bytes] = {}
        self._events: deque[Told] = deque()
        self._latest: int | None = None
        """The highest id in the database, where it must read there what it has missed."""
        self._away: bytes | None = None
        self._in_touch = False
        self._news = asyncio.Event()

    def tell_server(self, server_id: str, raw: bytes) -> None:
        """How a server is now; what waits of it is older."""
        self._servers.pop(server_id, None)
        self._servers[server_id] = raw
        self._news.set()

    def tell_event(self, told: Told) -> None:
        """An event that has just happened."""
        if self._latest is not None:
            return  # it will be read with the others
        self._events.append(told)
        if len(self._events) > EVENTS_WAITING:
            self.catch_up(told.event_id)
        self._news.set()

    def tell_away(self, raw: bytes) -> None:
        """Events don't come for the moment."""
        self._away, self._in_touch = raw, False
        self._news.set()

    def catch_up(self, latest: int) -> None:
        """Events come, after some that it may have missed."""
        self._events.clear()
        self._latest, self._away = latest, None
        self._news.set()

    async def news(self) -> None:
        """Waits until there are any."""
        await self._news.wait()
        self._news.clear()

    def waiting(self) -> Iterator[bytes]:
        """What waits for it here, with what comes in the meantime."""
        while self._servers:
            yield self._servers.pop(next(iter(self._servers)))
        if self._away:
            away, self._away = self._away, None
            yield away
        while self._events:
            yield from self.new(self._events.popleft())

    @property
    def is_behind(self) -> bool:
        """Whether it must read what it has missed."""
        return self._latest is not None

    def resume(self) -> tuple[int, int | None]:
        """It reads now: the id after which events may be new to it, and the one after which it will have them all,
        where it was out of touch.
        """
        if self._begin is None:
            self._begin = self._position = self._latest or 0
        self._latest = None
        was_in_touch, self._in_touch = self._in_touch, True
        return max(self._begin, self._position - OVERLAP), None if was_in_touch else self._position

    def new(self, told: Told) -> Iterable[bytes]:
        """An event's message, unless it was told already."""
        if told.event_id in self._recent:
            return ()
        self._recent.append(told.event_id)
        self._position = max(self._position, told.event_id)
        return (told.raw,)
