"""One server's stream, read by several clients whose requests are equal, each at its own pace.

Nothing drives it but its readers: who has taken all that has come waits for the server, and what then comes is there
for all. So nobody waits for another who reads slowly, and a server is read as fast as the fastest reader.

- Who comes later gets what has come so far at once, and goes on with the others.
- Whose request made the call owns it. When its client leaves, or has no more to pay with, another reader becomes its
  owner, and the call goes on; when the last one leaves, it ends. Who has budgets of which nothing is claimed for the
  rest, or which are used up, becomes no owner: where only such are left, it breaks off.
- A stream that breaks off does so for each reader, behind all that had come.
- All of it is kept while it may be worth keeping. When it has become larger, nobody joins any more, and only so much of
  its end is kept: who is further behind than that, and stays so when the others wait a moment for him, is cut off.
"""

import asyncio
from collections import deque
from itertools import islice
from typing import Protocol

from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.streams.stream import BROKEN_OFF, Interrupted, Stream
from apps.gateway.limits.admission import Overspent
from apps.gateway.limits.budgets import Claim, Purse

MOMENT = 0.25
"""Seconds that one who is about to miss something has to read on, once: a busy worker may not have come to him yet."""
LOOKS = 10
"""In that time, whether he has."""


UNPAID = "The client that had asked first is gone, and your budget has not enough left for the rest of this answer."


class Keeper(Protocol):
    """Who is told what becomes of a shared stream."""

    def stream_over(self, exchange: Exchange, stream: Stream, events: bytes | None) -> None:
        """The call of `exchange` is over: `events` are all of a stream that ended well and is worth keeping."""

    def keep_nothing(self, exchange: Exchange) -> None:
        """The stream of `exchange` has become too large to be kept."""

    def hand_over(self, exchange: Exchange, heir: Exchange, stream: Stream) -> None:
        """The client of `exchange` has left, and the call goes on as the heir's."""


class Shared:
    """A stream and those who read it. `most` bytes of it are kept."""

    def __init__(self, stream: Stream, owner: Exchange, keeper: Keeper, most: int):
        self.stream = stream
        self.owner = owner
        """Whose request made the call, or who has taken it over."""
        self.is_whole = True
        """Whether all that has come is still here."""
        self.is_over = False
        self.is_broken = False
        """Whether it broke off before its end."""
        self.why = BROKEN_OFF
        """What its readers are told then."""
        self._keeper = keeper
        self._most = most
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._first = 0
        """The number of the first piece that is still here."""
        self._readers: dict[Reader, None] = {}
        self._is_awaited = False
        self._news = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether one may join: all that has come is here, and so is the rest, or it comes."""
        return self.is_whole and (not self.is_over or self.has_ended_well)

    @property
    def has_ended_well(self) -> bool:
        """Whether all has come."""
        return self.is_over and not self.is_broken and self.stream.parser.finished

    def join(self, exchange: Exchange) -> "Reader":
        """Reads from the beginning."""
        reader = exchange.source = Reader(self, exchange)
        self._readers[reader] = None
        return reader

    def leave(self, reader: "Reader", empty: Purse | None = None) -> None:
        """One reads no further, perhaps because there is a purse that is empty, out of which nobody can go on."""
        self._readers.pop(reader, None)
        if self.is_over or (self._readers and reader.exchange is not self.owner):
            return
        others = [one.exchange for one in self._readers if not one.exchange.settled]  # else it is about to leave too
        able = [other for other in others if not (empty and other.pays_out_of(empty))]
        heir = next((other for other in able if not other.unclaimed(self.owner)), None)
        if heir is None:
            self.is_broken, self.why = not self.stream.parser.finished, UNPAID
            self._end(None)
        else:
            self.owner = heir
            self._keeper.hand_over(reader.exchange, heir, self.stream)

    def wake(self) -> None:
        """Has those who wait look again, but for the one who waits for the server."""
        self._news.set()
        self._news.clear()

    @property
    def end(self) -> int:
        """The number of the piece that comes next."""
        return self._first + len(self._pieces)

    def reaches(self, number: int) -> bool:
        """Whether piece `number` has come."""
        return number < self.end

    def has(self, number: int) -> bool:
        """Whether it is still here."""
        return self._first <= number < self.end

    def after(self, number: int) -> tuple[bytes, int]:
        """What there is from piece `number` on, and the number that comes next; Interrupted where it is gone."""
        if number < self._first:
            raise Interrupted("The answer was read too slowly.")
        found, end = self._pieces, self.end
        if number == end - 1:
            return found[-1], end
        new = list(islice(reversed(found), end - number))
        return b"".join(reversed(new)), end

    async def more(self) -> None:
        """Waits until there is more, or the end."""
        if self._is_awaited:
            await self._news.wait()
            return
        self._is_awaited = True
        try:
            if self._size > self._most:
                await self._make_room()
            self._take(await self.stream.next())
        except Interrupted:
            self.is_broken = True
            self._end(None)
        finally:
            self._is_awaited = False
            self.wake()

    def _take(self, piece: bytes) -> None:
        if not piece:
            self._end(b"".join(self._pieces) if self.is_whole else None)
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._most and self.is_whole:
            self.is_whole = False
            self._keeper.keep_nothing(self.owner)

    async def _make_room(self) -> None:
        """Lets go of what is too much, after the moment of those who have not read it."""
        first = self._first_to_keep()
        spared = [reader for reader in self._readers if reader.is_before(first) and not reader.was_spared]
        for reader in spared:
            reader.was_spared = True
        for _ in range(LOOKS):
            if not any(reader.is_before(first) for reader in spared if reader in self._readers):
                break
            await asyncio.sleep(MOMENT / LOOKS)
        while self._first < first:
            self._size -= len(self._pieces.popleft())
            self._first += 1

    def _first_to_keep(self) -> int:
        """The number of the first piece that is not too much; where only one reads, all before the newest are."""
        most, size, first = self._most if len(self._readers) > 1 else 0, self._size, self._first
        for piece in islice(self._pieces, len(self._pieces) - 1):
            if size <= most:
                break
            size -= len(piece)
            first += 1
        return first

    def _end(self, events: bytes | None) -> None:
        if self.is_over:  # one who still read on when it ended
            return
        self.is_over = True
        self.stream.close()
        self._keeper.stream_over(self.owner, self.stream, events)


class Reader:
    """One client's place in a shared stream."""

    def __init__(self, shared: Shared, exchange: Exchange):
        self.shared = shared
        self.exchange = exchange
        self.is_at_end = False
        """Whether it has taken all of a stream that ended well."""
        self.was_spared = False
        """Whether the others have waited for it."""
        self._number = 0
        self._unpaid: Claim | None = None
        self._may_read_to = 0
        """Where it was stopped: what had come before is its."""

    def is_before(self, number: int) -> bool:
        """Whether it has not read all before piece `number`."""
        return self._number < number

    @property
    def stream(self) -> Stream:
        """The server's."""
        return self.shared.stream

    async def next(self) -> bytes:
        """What has come since the last time, which may be waited for; nothing at the proper end. Interrupted at any
        other, or Overspent.
        """
        shared = self.shared
        if self._unpaid and not (self._number < self._may_read_to and shared.has(self._number)):
            raise Overspent(self._unpaid)
        while not shared.reaches(self._number):
            if shared.is_broken:
                raise Interrupted(shared.why)
            if shared.is_over:
                self.is_at_end = True
                return b""
            await shared.more()
            if self._unpaid:
                raise Overspent(self._unpaid)
        piece, self._number = shared.after(self._number)
        return piece

    async def read_to_end(self) -> None:
        """Reads for one who wants the whole, until it is kept or won't be, and leaves."""
        try:
            while self.shared.is_whole and await self.next():
                pass
        except Interrupted:
            pass
        finally:
            self.close()

    def stop(self, unpaid: Claim) -> None:
        """Reads no further than what has come, for which there is not enough. The others may go on."""
        self._unpaid, self._may_read_to = unpaid, self.shared.end
        self.close(unpaid.purse)
        self.shared.wake()

    def close(self, empty: Purse | None = None) -> None:
        """Reads no further, because of an `empty` purse where there is one."""
        self.exchange.source = None
        self.shared.leave(self, empty)
