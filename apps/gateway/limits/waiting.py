"""This worker's requests that wait for a place on a server. Who is next is decided in Redis: see `places.lua`."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import hiredis

from citadel.errors import Unavailable
from citadel.redis import Argument, Redis, RedisUnavailable

PRIORITIES = {"low": 0, "normal": 1, "high": 2, "critical": 3}
LISTEN = 2
"""Seconds for which Redis is asked to hold a question for grants."""


class Wanted(NamedTuple):
    """The servers that a request may go to, in order, where one of them has a limit; 0 is none."""

    model: str
    team: str
    priority: int
    servers: tuple[tuple[str, int], ...]
    room: int
    """Requests that may wait for the model at a time."""
    patience: float
    """Seconds for which this one may wait."""
    hold_ms: float
    """How long a place is usually held."""

    def arguments(self, ticket: str) -> tuple[Argument, ...]:
        """As the script takes them."""
        flat = [part for server in self.servers for part in server]
        patience = int(self.patience * 1000)
        where = (ticket, self.model, self.team, self.priority, self.room, patience, int(self.hold_ms))
        return (len(self.servers), *where, *flat)


class NoPlace(Unavailable):
    """All servers that a request may go to are busy, and it can't or could not wait for one."""

    default_code = "queue_full"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: float | None = None, waited_ms: float = 0.0
    ):
        super().__init__(message, code=code, retry_after=retry_after)
        self._waited_ms = waited_ms

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`retry-after`, and how long the request has waited."""
        return [*super().headers(), (b"x-citadel-queue-ms", b"%d" % self._waited_ms)]


def too_many_wait(position: int, expected_ms: float, *, is_full: bool) -> NoPlace:
    """The refusal of a request at the door of the room."""
    seconds = max(1.0, expected_ms / 1000)
    if is_full:
        message = f"All servers of this model are busy, and no more may wait; a place is expected in {seconds:.0f} s."
        return NoPlace(message, code="queue_full", retry_after=seconds)
    message = (
        f"All servers of this model are busy and {position - 1} requests wait before this one: it would wait for "
        f"about {seconds:.0f} s, longer than it may."
    )
    return NoPlace(message, code="queue_too_long", retry_after=seconds)


AGAIN = ""
"""What a waiter is told when Redis has lost sight of it: ask anew."""


class Room:
    """Those of this worker who wait, by ticket.

    `claimed` is told of each place that was handed over, `unclaimed` of those whose waiter has gone, and `doubt` that
    one may have been lost on its way.
    """

    def __init__(
        self,
        redis: Redis,
        claimed: Callable[[str], None],
        unclaimed: Callable[[str], None],
        doubt: Callable[[], None],
    ):
        self._redis = redis
        self._claimed = claimed
        self._unclaimed = unclaimed
        self._doubt = doubt
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._expected: dict[str, str | None] = {}
        """Tickets of requests that may have to wait, and what their turn brought if that came before they knew."""
        self._ear: asyncio.Task[None] | None = None
        self.left: list[str] = []
        """Tickets that are given up; the next call to Redis takes them along."""

    def expect(self, ticket: str) -> None:
        """A request asks for a place. That it must wait, and its turn, come on two connections, in any order."""
        self._expected[ticket] = None

    def expect_no_more(self, ticket: str) -> None:
        """It has its place, or has gone."""
        if server := self._expected.pop(ticket, None):
            self._unclaimed(server)

    async def wait(self, worker: str, ticket: str, position: int, patience: float) -> str:
        """The server whose place was handed over, or AGAIN. NoPlace when that takes too long or a better one came."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        early = self._expected.pop(ticket, None)
        if early is not None:
            _tell(future, early)
        if self._ear is None or self._ear.done():
            self._ear = asyncio.create_task(self._listen(worker), name="waiting room")
        try:
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            self._hand_back(future)
            message = f"All servers of this model are busy; no place in {patience:.0f} s from position {position} on."
            raise NoPlace(message, code="queue_timeout", retry_after=1, waited_ms=patience * 1000) from None
        except asyncio.CancelledError:
            self._hand_back(future)
            raise
        finally:
            del self._waiting[ticket]
            if future.cancelled() or not future.done():
                self.left.append(ticket)

    def ask_again(self) -> None:
        """The worker goes on under another name: tickets under the old one are worth nothing."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(AGAIN)
        if self._ear:
            self._ear.cancel()
            self._ear = None

    async def stop(self) -> None:
        """Listens no more."""
        if self._ear:
            self._ear.cancel()
            await asyncio.gather(self._ear, return_exceptions=True)

    async def _listen(self, worker: str) -> None:
        """Takes what is handed to this worker, for as long as somebody waits."""
        while self._waiting:
            try:
                told = await self._redis.call("BLPOP", f"limits:grants:{worker}", LISTEN)
            except (RedisUnavailable, hiredis.HiredisError):
                self._doubt()
                await asyncio.sleep(0.1)  # who waits is asked anew once Redis is back
                continue
            if told:
                self._take(*told[1].decode().partition(" ")[::2])

    def _take(self, ticket: str, server: str) -> None:
        future = self._waiting.get(ticket)
        if server:
            self._claimed(server)
        if future is None and ticket in self._expected:
            self._expected[ticket] = server
        elif future is not None and not future.done():
            _tell(future, server)
        elif server:
            self._unclaimed(server)

    def _hand_back(self, future: asyncio.Future[str]) -> None:
        """Gives back a place that came in the very moment in which its waiter went."""
        if future.done() and not future.cancelled() and not future.exception() and (server := future.result()):
            self._unclaimed(server)


def _tell(future: asyncio.Future[str], server: str) -> None:
    """Ends a wait: with a server that has a place, or without one."""
    if server:
        future.set_result(server)
    else:
        message = "All servers of this model are busy, and a request of higher priority took this one's turn."
        future.set_exception(NoPlace(message, code="queue_full", retry_after=1))
