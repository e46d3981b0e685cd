"""One worker's eyes on the board: its copy of how the servers are, and what its own traffic has to say of them."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from apps.orchestration.fleet import Server
from apps.orchestration.health.board import Board
from apps.orchestration.health.changes import tell_change
from apps.orchestration.health.conditions import (
    HEALTHY,
    NOT_KNOWN,
    UNANSWERED,
    Bar,
    Known,
    Loads,
    Record,
    Records,
    Status,
)
from apps.orchestration.health.evidence import Group
from apps.orchestration.health.pace import Counts, Key
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.schedule import learn_soon
from apps.orchestration.health.trials import LONELY_BACKOFF
from apps.orchestration.routing.homes import Homes
from citadel.background import Background
from citadel.database import Pool
from citadel.redis import RedisError

log = structlog.get_logger("citadel.watch")

LOOK_EVERY = 0.25
"""Seconds between two looks at the board's number."""
JUST_NOW = 1.0
"""Seconds until what a worker has told stands on the board, or never will."""
MOST_SUSPECTS = 100
"""That are remembered while Redis is away."""
LOADS_EVERY = 2.0
"""Seconds between two looks at the servers' load."""


class Watch:
    """Keeps a worker's standings in step with the board, in both directions."""

    def __init__(self, board: Board, standings: Standings, pool: Pool, max_backoff: float):
        self._board = board
        self._standings = standings
        self._pool = pool
        self._longest = max_backoff
        self.number = 0
        """Which of the workers this one is: those that begin together have numbers one after the other."""
        self.records: Records = {}
        self.loads: Loads = {}
        self.unsaid: Record = NOT_KNOWN
        """How a server is told to be of which the board says nothing: at first nobody has looked."""
        self.paces: Mapping[Key, float] = {}
        """Seconds in which servers give nearly all of their first bytes, as any worker has seen."""
        self.new_answers: Callable[[], Mapping[Key, Counts]] = dict
        """Gives what this worker has seen of that since it was last asked."""
        self.on_silence: Callable[[str], object] = lambda _server_id: None
        """Told of a server that does not answer: nor will those get anything who wait there."""
        self.on_given_up: Callable[[str], object] = lambda _server_id: None
        """Told of a server that is given up, though it may answer all the same."""
        self.suspects: Mapping[bytes, float] = {}
        """Requests that any worker suspects of making servers fail, by their digests, and since when (monotonic)."""
        self.homes = Homes(board.redis)
        """Where conversations have gone, in all workers."""
        self._given_up: set[tuple[str, int]] = set()
        """Who is given up, and since when."""
        self.clock_ms = 0.0
        """What is added to monotonic milliseconds to get Redis's."""
        self._known = -1
        self._read_at = 0.0
        """When the board was asked for what `records` say."""
        self._out: Mapping[str, Bar] = {}
        """Who is out by that, and whose word keeps them so."""
        self._untold: dict[str, tuple[str, Sequence[Group]]] = {}
        """Who is out by this worker's traffic and not on the board yet."""
        self._background = Background("watch")

    async def start(self) -> None:
        """Looks for the first time, and goes on looking."""
        with contextlib.suppress(RedisError):
            await self.look()
        with contextlib.suppress(RedisError):  # a Redis that is full can be read
            self.number = await self._board.begin()
        self._background.begin(self._look_on())
        self._background.begin(self.homes.exchange_on())

    async def stop(self) -> None:
        """Looks no more."""
        await self._background.stop()

    def server_out(self, server_id: str, reason: str, groups: Sequence[Group]) -> None:
        """This worker's traffic has ejected a server: all shall know, unless enough of its `groups` are out already.

        Waits for nothing.
        """
        self._untold[server_id] = (reason, groups)
        self._background.begin(self._tell_who_is_out())

    def server_degraded(self, server_id: str, reason: str) -> None:
        """This worker's traffic fails more often than it should, and not so often that the server is out."""
        self._background.begin(self._say(server_id, "degraded", reason))

    def server_well(self, server_id: str) -> None:
        """A real request has succeeded on a server that was out, or few enough fail again."""
        self._untold.pop(server_id, None)
        self._background.begin(self._say(server_id, "healthy", ""))

    async def relocate(self, servers: Sequence[tuple[Server, Server]]) -> None:
        """Has all forget how these servers were before they moved or became another kind."""
        for was, now in servers:
            if was.url != now.url:
                self._untold.pop(now.server_id, None)
            with contextlib.suppress(RedisError):
                if change := await self._board.relocate(was, now):
                    self._background.begin(tell_change(self._board, self._pool, change))
        if servers:
            self._known = -1  # standings are forgotten too, and the board may know the new address already

    def server_silent(self, server_id: str, enough: int | None, groups: Sequence[Group] | None) -> None:
        """A request has waited there in vain: when that has happened `enough` times, over all workers and with no good
        answer in between, the server is out, or asked last where no `groups` say that it may. None: not for that.
        """
        self._background.begin(self._count(server_id, UNANSWERED, enough, groups, silent=True))

    def server_failed(self, server_id: str, reason: str, enough: int | None, groups: Sequence[Group] | None) -> None:
        """A request has failed there: as above, when so many have in a row."""
        self._background.begin(self._count(server_id, reason, enough, groups, silent=False))

    def failure_forgiven(self, server_id: str) -> None:
        """The last one that failed there would have failed anywhere."""
        self._background.begin(self._quietly(self._board.troubles.forgive_failure(server_id)))

    def server_answers(self, server_id: str, *, whole: bool) -> None:
        """A server where requests waited in vain has answered one, or begun to; `whole`: where they failed, too."""
        self._background.begin(self._quietly(self._board.troubles.answers(server_id, whole=whole)))

    def suspect(self, request: bytes, now: float) -> None:
        """A request, by its digest, has made two servers fail: all shall know."""
        self.suspects = dict([*self.suspects.items(), (request, now)][-MOST_SUSPECTS:])
        self._background.begin(self._quietly(self._board.troubles.suspect(request)))

    def absolve(self, request: bytes) -> None:
        """One that was suspected has been answered."""
        self.suspects = {digest: at for digest, at in self.suspects.items() if digest != request}
        self._background.begin(self._quietly(self._board.troubles.absolve(request)))

    def models_moved(self, server_id: str) -> None:
        """A server does not hold a model that it is known for: it shall be asked for its models."""
        self._background.begin(self._quietly(learn_soon(self._board.redis, server_id)))

    async def take_trial(self, server_id: str, *, lonely: bool) -> bool:
        """Whether it is this worker's turn to try a server that is out; without Redis each worker has its own."""
        longest = LONELY_BACKOFF if lonely else self._longest
        try:
            turn, left = await self._board.take_trial(server_id, int(longest * 1000))
        except RedisError:
            return True
        if not turn:
            self._standings.postpone_trial(server_id, time.monotonic() + left / 1000)
        return turn

    async def look(self) -> None:
        """Takes a new copy of the board where it has moved."""
        board = self._board
        number, silent, failing, suspects, now = await asyncio.gather(
            board.number(), board.troubles.silent(), board.troubles.failing(), board.troubles.suspects(), board.now()
        )
        self.clock_ms = now - time.monotonic() * 1000
        just_now = time.monotonic() - JUST_NOW
        new = {digest: at for digest, at in self.suspects.items() if at > just_now}  # the board may not know them yet
        self.suspects = new | {digest: (at - self.clock_ms) / 1000 for digest, at in suspects.items()}
        if number != self._known:
            await self._read(number)
        else:
            self._heed()
        self._standings.follow_troubled(silent, failing, just_now)  # after it: who is out is silent no more

    async def _read(self, number: int) -> None:
        """Takes what the board says of each server."""
        asked_at = time.monotonic()
        records, given_up = await asyncio.gather(self._board.read(), self._board.given_up())
        self.records, self.unsaid, self._known, self._read_at = records, HEALTHY, number, asked_at
        self._out = {server_id: record.bar for server_id, record in records.items() if record.status == "unhealthy"}
        silent = self._heed()
        begun = {(server_id, mark.at) for server_id, mark in given_up.items()}
        for server_id, _ in begun - self._given_up:
            if server_id not in silent:
                self.on_given_up(server_id)
        self._given_up = begun

    def _heed(self) -> set[str]:
        """Follows the board as it was last read, also in what this worker knew better then; who is out as requests wait
        there in vain, and was not.
        """
        news = self._standings.follow(self._out, self._read_at, time.monotonic())
        silent = {server_id for server_id in news if self.records[server_id].reason == UNANSWERED}
        for server_id in silent:
            self.on_silence(server_id)
        return silent

    def clock(self) -> float:
        """Redis's clock in seconds since the epoch, which all workers have in common, also while it is away; this
        machine's before Redis has first said the time.
        """
        return time.monotonic() + self.clock_ms / 1000 if self.clock_ms else time.time()

    def known(self) -> Known:
        """How the servers are, as far as this worker has seen it: it looks at the board four times a second."""
        return Known(self.records, self.loads, self.unsaid)

    async def known_now(self) -> Known:
        """The same with what the board says in this moment: good probes one after the other are no news to a worker,
        but they have times. While Redis is away it is what the worker knows.
        """
        try:
            return Known(await self._board.read(), await self._board.loads.read())
        except RedisError:
            return self.known()

    async def refresh(self) -> None:
        """Knows from now on what the board says in this moment. RedisError."""
        await self.look()
        await self._exchange()

    async def _exchange(self) -> None:
        """Tells what this worker has measured, and takes the servers' load and what others have measured."""
        board, asked_at = self._board, time.monotonic()
        tallies, untold = board.tell_tallies(self._standings.take_untold(asked_at)), self.new_answers()
        shared, _ = await asyncio.gather(tallies, board.tell_answers(untold))
        self._standings.follow_shared(shared, asked_at - JUST_NOW)
        self.loads = await board.loads.read()
        paces = await board.paces()
        if paces != self.paces:
            self.paces = paces

    async def _look_on(self) -> None:
        looked_at_loads = 0.0
        while True:
            try:
                await self.look()
                if time.monotonic() - looked_at_loads >= LOADS_EVERY:
                    looked_at_loads = time.monotonic()
                    await self._exchange()
                await self._tell_who_is_out()
            except RedisError:
                self._known = -1  # it may have forgotten: what it says then is another board
                self._standings.follow_shared({}, time.monotonic())
            except Exception:  # the outermost edge of this task: without it no server would ever come back
                log.exception("board_not_read")
            await asyncio.sleep(LOOK_EVERY)

    async def _tell_who_is_out(self) -> None:
        while self._untold:
            server_id, (reason, groups) = self._untold.popitem()
            try:
                since = self._silent_since(server_id) if reason == UNANSWERED else 0
                change = await self._board.eject(server_id, reason, groups, since)
            except RedisError:
                if not self._standings.in_rotation(server_id):  # else it has answered again in the meantime
                    self._untold.setdefault(server_id, (reason, groups))  # for when Redis is back
                return
            if change is None:
                self._standings.pardon(server_id, time.monotonic())
                continue
            if not self._standings.in_rotation(server_id):  # else it has answered again in the meantime
                self._standings.put_out(server_id, time.monotonic(), change.record.bar)
            await tell_change(self._board, self._pool, change)

    def _silent_since(self, server_id: str) -> int:
        """Since when nobody has got anything there, in the board's milliseconds; 0: not known."""
        standing = self._standings[server_id]
        return round(standing.silent_since * 1000 + self.clock_ms) if standing and standing.silent_since else 0

    async def _count(
        self, server_id: str, reason: str, enough: int | None, groups: Sequence[Group] | None, *, silent: bool
    ) -> None:
        """Counts with all workers; without the board each goes by its own."""
        count = self._board.troubles.count_silence if silent else self._board.troubles.count_failure
        with contextlib.suppress(RedisError):
            counted = await count(server_id)
            if enough is None or counted < enough:
                return
            if not self._standings.is_in_trouble(server_id, silent=silent):
                return
            if groups is None:
                self._standings.ask_last(server_id, time.monotonic())
            else:
                self._standings.eject(server_id, time.monotonic(), "" if silent else "failing")
                log.warning("server_ejected", server=server_id, reason=reason)
                self.server_out(server_id, reason, groups)
                if silent:  # nor will those get an answer who wait there now
                    self.on_silence(server_id)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        """Tells the board what does no harm untold, where Redis is away."""
        with contextlib.suppress(RedisError):
            await work

    async def _say(self, server_id: str, status: Status, reason: str) -> None:
        try:
            change = await self._board.say(server_id, "traffic", status, reason)
        except RedisError:
            return  # then it may have forgotten more, and who goes out or comes back is told anew
        if change.record.status == "unhealthy":
            self._standings.put_out(server_id, time.monotonic(), change.record.bar)
        await tell_change(self._board, self._pool, change)
