"""This worker as Redis knows it: under a name, by its heartbeat, with all that it runs and those who wait here.

A worker holds the truth about what it runs. After a call whose fate isn't known, or once Redis has forgotten it, it
tells all of that again under another name, and the old one is as dead as a worker that was killed.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import structlog

from apps.gateway.limits.admission import WAITS, Question, Verdict
from apps.gateway.limits.scripts import ADMIT, RENAME
from apps.gateway.limits.sweeping import sweep_on
from apps.gateway.limits.tally import ON_SERVER, Tally
from apps.gateway.limits.waiting import Room
from apps.gateway.limits.workers import Workers
from citadel.background import Background
from citadel.gathering import Gathering
from citadel.redis import Argument, Redis, RedisError, RedisUnavailable
from citadel.sections import GlobalLimit

log = structlog.get_logger("citadel.limits")

LEASE = 4.0
"""Seconds of silence after which a worker is dead and what it ran counts no more."""
HEARTBEAT = 0.5
RELEASE_WITHIN = 0.01


class Worker:
    """Asks Redis, many questions in one call, and tells it what has ended.

    `ear` is a connection of its own on which Redis may be waited for. `unclaimed` is told of a verdict whose request
    has gone, `counted_again` that Redis can be asked after it could not. With each heartbeat Redis tells the `workers`
    how many there are.
    """

    def __init__(
        self,
        redis: Redis,
        ear: Redis,
        limit: GlobalLimit,
        workers: Workers,
        unclaimed: Callable[[Question, Verdict], None],
        counted_again: Callable[[], None],
    ):
        self.redis = redis
        self.tally = Tally()
        self.room = Room(ear, self.tally.claim, self._give_place_back, self._tell_now, self.doubt)
        self.name = secrets.token_hex(8)
        self._given_up: list[str] = []
        """Names that it had before, as long as Redis has not been told so."""
        self._global = (limit.requests_per_minute, limit.burst)
        self._workers = workers
        self._unclaimed = unclaimed
        self._counted_again = counted_again
        self._gathering: Gathering[Question, Verdict] = Gathering(self._ask, unclaimed)
        self._tickets = itertools.count()
        self._background = Background("limits")
        self._asking = asyncio.Lock()
        """Held while Redis is asked: what a name counts for is not changed in the midst of that."""
        self._in_doubt = False
        self._blind = False
        """Whether Redis could not be asked of late."""
        self._flush: asyncio.TimerHandle | None = None

    def ticket(self) -> str:
        """For a question of this worker; of two that ask in the same moment the earlier has the lower."""
        return f"{self.name}{next(self._tickets):08x}"

    async def ask(self, question: Question) -> Verdict:
        """What Redis says; what it has let in is counted here. Raises RedisError."""
        if question.wanted:
            self.room.expect(question.ticket)
        told, waits = self._gathering.ask(question), False
        try:
            verdict = await told
            waits = verdict[0] == WAITS
            return verdict
        except asyncio.CancelledError:
            if not told.cancelled() and not told.exception():  # told, and gone before it could be heard
                self._unclaimed(question, told.result())
            raise
        finally:
            if question.wanted and not waits:
                self.room.expect_no_more(question.ticket)

    def tell(self, *, now: bool) -> None:
        """Something has ended. The next call to Redis takes that along, within `RELEASE_WITHIN`; or one of its own does
        `now`, which is on the wire when this returns. Nobody waits for what comes of it.
        """
        if now:
            self._tell_now()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(RELEASE_WITHIN, self._flush_now)

    def doubt(self) -> None:
        """Redis may count something of ours that we don't know of, or not know of what runs."""
        self._in_doubt = True

    @contextlib.asynccontextmanager
    async def under_its_name(self) -> AsyncIterator[str]:
        """The name under which Redis counts what it runs, which stays the same meanwhile."""
        async with self._asking:
            yield self.name

    def start(self) -> None:
        """Begins to tell Redis that it lives, and to look after those that don't."""
        self._background.begin(self._beat())
        self._background.begin(sweep_on(self.redis))

    async def stop(self) -> None:
        """Takes its places back."""
        await self._background.stop()
        await self.room.stop()
        if self._flush:
            self._flush.cancel()
        with contextlib.suppress(RedisError):
            self._given_up.append(self.name)
            await self._tell_name("", ())

    async def _beat(self) -> None:
        while True:
            try:
                if self._in_doubt:
                    self._workers.lost(time.monotonic())
                    await self.take_new_name()
                    self._counted_again()  # what was to be charged may be lost
                await self._ask([], look_after_all=True)
                self._say(blind=False)
            except RedisError as error:
                self._in_doubt = True
                self._say(blind=True, reason=str(error)[:200])
            except Exception:  # the outermost edge of this task: without it this worker's places would be forgotten
                log.exception("limits_heartbeat_failed")
            await asyncio.sleep(HEARTBEAT)

    def _say(self, *, blind: bool, **details: str) -> None:
        """Tells the log when counting ends and begins again."""
        if blind and not self._blind:
            log.warning("requests_admitted_by_share", **details)
        elif self._blind and not blind:
            log.info("requests_counted_again")
        self._blind = blind

    async def _ask(self, asked: list[Question], *, look_after_all: bool = False) -> Sequence[Verdict]:
        verdicts: list[Verdict]
        async with self._asking:
            try:
                known, *verdicts = await self.redis.script(ADMIT, self._arguments(asked, look_after_all))
            except BaseException:
                self._in_doubt = True
                raise
            self.tally.note(asked, verdicts)
            self._hear(known)
            if look_after_all:
                self._workers.told(known, time.monotonic())
        return verdicts

    def _hear(self, known: int) -> None:
        """Where Redis did not know this worker any more, what that runs and who waits here counts no longer."""
        if not known and (self.tally.running or self.room.is_waited_in):
            self._in_doubt = True

    def _arguments(self, asked: Sequence[Question], look_after_all: bool = False) -> list[Argument]:
        """Of the script: what was asked, and what has been released since it was last told."""
        arguments: list[Argument] = [self.name, int(LEASE * 1000), *self._global, int(look_after_all)]
        arguments += self.tally.take()
        arguments += (len(self.room.left), *self.room.left)
        self.room.left.clear()
        arguments.append(len(self.room.moved))
        for waiter in self.room.moved:
            arguments += waiter.wanted.arguments(waiter.ticket)
        self.room.moved.clear()
        arguments.append(len(asked))
        for question in asked:
            arguments += question.arguments()
        return arguments

    def _give_place_back(self, server: str) -> None:
        """The one for whom it came has gone."""
        self.tally.end(ON_SERVER + server)
        self._tell_now()

    def _tell_now(self) -> None:
        try:
            told = self.redis.call("EVALSHA", ADMIT.digest, 0, *self._arguments(()))
        except RedisUnavailable:
            self._in_doubt = True
        else:
            told.add_done_callback(self._hear_of_release)

    def _hear_of_release(self, told: "asyncio.Future[Any]") -> None:
        if told.cancelled() or told.exception():  # it may be lost
            self._in_doubt = True
        else:
            self._hear(told.result()[0])

    def _flush_now(self) -> None:
        self._flush = None
        if self.tally.is_untold:
            self._gathering.nudge()

    async def take_new_name(self) -> None:
        """Tells what it runs anew as another worker: the old one is dead, and who waits asks anew. RedisError."""
        if not self.redis.available:  # nothing would be sent: the next name may be the first that is
            raise RedisUnavailable("limits")
        async with self._asking:
            self._given_up.append(self.name)
            self.name = secrets.token_hex(8)
            self._in_doubt = False
            self.room.ask_again()  # before it is told what runs: what is granted to the old name is void
            # By its text, which is told in one message, before anything under the new name.
            await self._tell_name(self.name, self.tally.anew())
            self._given_up.clear()

    async def _tell_name(self, new: str, running: Sequence[Argument]) -> None:
        old = self._given_up
        await self.redis.call("EVAL", RENAME.text, 0, new, int(LEASE * 1000), len(old), *old, *running)
