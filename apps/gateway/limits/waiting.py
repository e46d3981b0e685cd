"""This worker's requests that wait for a place on a server. Who is next is decided in Redis: see `places.lua`."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import NamedTuple

from citadel.errors import Unavailable
from citadel.redis import Argument, Redis, RedisError

PRIORITIES = {"low": 0, "normal": 1, "high": 2, "critical": 3}
LISTEN = 2
"""Seconds for which Redis is asked to hold a question for grants."""
LINGER = 5.0
"""Seconds for which a worker listens on after somebody has gone: Redis hears of that with the next heartbeat at the
latest, and may have a place for him until then."""


class Place(NamedTuple):
    """A server that takes a request. One that is `held` must be left once."""

    server: str
    held: bool
    limit: int = 0
    """How many such places there are; 0 where that is not known."""


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
    age_ms: float = 0.0
    """How long ago the request came, by which it stands in its line."""
    again: "Callable[[], Wanted | None] | None" = None
    """Gives what is wanted as things are now; None where it is no longer limited, or there is no server."""

    def arguments(self, ticket: str) -> tuple[Argument, ...]:
        """As the script takes them."""
        flat = [part for server in self.servers for part in server]
        patience = int(self.patience * 1000)
        where = (ticket, self.model, self.team, self.priority, self.room, patience, int(self.hold_ms), int(self.age_ms))
        return (len(self.servers), *where, *flat)


class Estimate(NamedTuple):
    """Where a request stood in the room, or would have stood, when it asked for a place."""

    position: int
    expected_ms: float
    """How long it was to wait."""


class NoPlace(Unavailable):
    """All servers that a request may go to are busy, and it can't or could not wait for one."""

    default_code = "queue_full"

    def __init__(self, reason: str, estimate: Estimate, *, code: str | None = None, waited_ms: float = 0.0):
        seconds = max(1, math.ceil(estimate.expected_ms / 1000))
        message = (
            f"All servers of this model are busy{reason} Its position was {estimate.position}, "
            f"with an expected wait of about {seconds} s."
        )
        super().__init__(message, code=code, retry_after=seconds)
        self.estimate = estimate
        self.waited_ms = waited_ms

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`retry-after` with the expected wait, and the position."""
        return [
            *super().headers(),
            (b"x-citadel-queue-position", b"%d" % self.estimate.position),
        ]


def too_many_wait(estimate: Estimate, *, is_full: bool) -> NoPlace:
    """The refusal of a request at the door of the room."""
    if is_full:
        return NoPlace(", and no more may wait.", estimate, code="queue_full")
    return NoPlace(", and this request would wait for longer than it may.", estimate, code="queue_too_long")


class LostSight(Exception):
    """Redis may know nothing of a waiter any more: he must ask anew."""


class Waiter:
    """A request that waits."""

    __slots__ = ("_begun", "came", "estimate", "has_moved", "stays_known", "ticket", "wanted")

    def __init__(self, ticket: str, wanted: Wanted, estimate: Estimate):
        self.ticket = ticket
        self.wanted = wanted
        self.estimate = estimate
        self.came: asyncio.Future[Place | None] = asyncio.get_running_loop().create_future()
        """What its wait comes to: a place, None where it needs none or there is no server, or an exception."""
        self.has_moved = False
        """Whether Redis was told of other servers, perhaps after it had given it a place."""
        self.stays_known = True
        """Whether Redis must be told that its ticket is given up."""
        self._begun = time.monotonic()

    @property
    def waited_ms(self) -> float:
        """Until now."""
        return (time.monotonic() - self._begun) * 1000

    def wants(self, server: str) -> bool:
        """Whether it may go there, as things are now."""
        return any(name == server for name, _ in self.wanted.servers)

    def place_held(self) -> str:
        """The server of which a place has come to it, if any."""
        came = self.came
        if not came.done() or came.cancelled() or came.exception():
            return ""
        place = came.result()
        return place.server if place and place.held else ""


class Room:
    """Those of this worker who wait, by ticket.

    `claimed` is told of each place that was handed over, `unclaimed` of those whose waiter has gone, `moved` that there
    is something to tell Redis, and `doubt` that a place may have been lost on its way.
    """

    def __init__(
        self,
        redis: Redis,
        claimed: Callable[[str], None],
        unclaimed: Callable[[str], None],
        moved: Callable[[], None],
        doubt: Callable[[], None],
    ):
        self._redis = redis
        self._claimed = claimed
        self._unclaimed = unclaimed
        self._tell_moved = moved
        self._doubt = doubt
        self._waiting: dict[str, Waiter] = {}
        self._expected: dict[str, str | None] = {}
        """Tickets of requests that may have to wait, and what their turn brought if that came before they knew."""
        self._ear: asyncio.Task[None] | None = None
        self._last_left = -LINGER
        self._look: asyncio.Handle | None = None
        self.looks = 0
        """How often the fleet has moved."""
        self.left: list[str] = []
        """Tickets that are given up; the next call to Redis takes them along."""
        self.moved: list[Waiter] = []
        """Who waits for other servers than until now; likewise."""

    def expect(self, ticket: str) -> None:
        """A request asks for a place. That it must wait, and its turn, come on two connections, in any order."""
        self._expected[ticket] = None

    def expect_no_more(self, ticket: str) -> None:
        """It has its place, or has gone."""
        if server := self._expected.pop(ticket, None):
            self._unclaimed(server)

    def give_up(self, worker: str, ticket: str) -> None:
        """It is to wait, and doesn't; it may have its turn before Redis hears of that."""
        self.expect_no_more(ticket)
        self._leave(ticket)
        self._hear_for(worker)

    async def wait(self, worker: str, waiter: Waiter, looks: int) -> Place | None:
        """The place that was handed over; None where the request needs none any more, or there is no server.

        `looks` is how often the fleet had moved when it was asked for. Raises NoPlace when that takes too long or the
        room was needed for another, and LostSight.
        """
        ticket, patience = waiter.ticket, waiter.wanted.patience
        self._waiting[ticket] = waiter
        early = self._expected.pop(ticket, None)
        if looks != self.looks:
            self._look_at(waiter)
            self._tell_those_who_moved()
        if early is not None:
            self._bring(waiter, early)
        self._hear_for(worker)
        try:
            async with asyncio.timeout(patience):
                return await waiter.came
        except TimeoutError:
            self._hand_back(waiter)
            reason = f"; no place in {patience:.0f} s."
            raise NoPlace(reason, waiter.estimate, code="queue_timeout", waited_ms=waiter.waited_ms) from None
        except asyncio.CancelledError:
            self._hand_back(waiter)
            raise
        finally:
            del self._waiting[ticket]
            if waiter.stays_known:
                self._leave(ticket)

    @property
    def is_waited_in(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def look_again_soon(self) -> None:
        """The fleet moves: in the next turn of the loop, when it has moved, all who wait are planned anew."""
        if self._look is None:
            self._look = asyncio.get_running_loop().call_soon(self._look_again)

    def ask_again(self) -> None:
        """The worker goes on under another name: tickets under the old one are worth nothing."""
        self.moved.clear()
        for waiter in self._waiting.values():
            if not waiter.came.done():
                waiter.came.set_exception(LostSight())
        if self._ear:
            self._ear.cancel()
            self._ear = None

    async def stop(self) -> None:
        """Listens no more."""
        if self._ear:
            self._ear.cancel()
            await asyncio.gather(self._ear, return_exceptions=True)

    def _leave(self, ticket: str) -> None:
        """Has the next call to Redis tell that nobody waits with it any more."""
        self.left.append(ticket)
        self._last_left = time.monotonic()

    def _hear_for(self, worker: str) -> None:
        if self._ear is None or self._ear.done():
            self._ear = asyncio.create_task(self._listen(worker), name="waiting room")

    async def _listen(self, worker: str) -> None:
        """Takes what is handed to this worker, for as long as somebody waits or may be thought to."""
        while self._waiting or time.monotonic() < self._last_left + LINGER:
            try:
                told = await self._redis.call("BLPOP", f"limits:grants:{worker}", LISTEN)
            except RedisError:
                self._doubt()
                await asyncio.sleep(0.1)  # who waits is asked anew once Redis is back
                continue
            if told:
                self._take(*told[1].decode().partition(" ")[::2])

    def _take(self, ticket: str, server: str) -> None:
        waiter = self._waiting.get(ticket)
        if server:
            self._claimed(server)
        if waiter is None and ticket in self._expected:
            self._expected[ticket] = server
        elif waiter is not None and not waiter.came.done():
            self._bring(waiter, server)
        elif server:
            self._unclaimed(server)

    def _bring(self, waiter: Waiter, server: str) -> None:
        """Ends a wait: with a server that has a place, or without one."""
        if waiter.came.done() or (server and not waiter.wants(server)):
            if server:  # it has gone out as the place came; the others know that the waiter is still there
                self._unclaimed(server)
            return
        waiter.stays_known = waiter.has_moved
        if server:
            waiter.came.set_result(Place(server, held=True))
        else:
            reason = ", and another request took this one's turn, by its priority or because its team has fewer here."
            waiter.came.set_exception(NoPlace(reason, waiter.estimate, waited_ms=waiter.waited_ms))

    def _hand_back(self, waiter: Waiter) -> None:
        """Gives back a place that came in the very moment in which its waiter went."""
        if server := waiter.place_held():
            self._unclaimed(server)

    def _look_again(self) -> None:
        self._look = None
        self.looks += 1
        for waiter in self._waiting.values():
            self._look_at(waiter)
        self._tell_those_who_moved()

    def _look_at(self, waiter: Waiter) -> None:
        """Has a waiter wait for the servers that there are now."""
        before = waiter.wanted
        if waiter.came.done() or before.again is None:
            return
        wanted = before.again()
        if wanted is None:
            waiter.came.set_result(None)
            return
        waiter.wanted = wanted
        free = next((name for name, limit in wanted.servers if not limit), None)
        if free is not None:
            waiter.came.set_result(Place(free, held=False))
        elif set(wanted.servers) != set(before.servers):
            waiter.has_moved = True
            self.moved.append(waiter)

    def _tell_those_who_moved(self) -> None:
        if self.moved:
            self._tell_moved()
