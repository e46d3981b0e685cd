"""Asks Redis whether a request may run, and where: all requests of a turn of the loop in one script, in one round trip.

What is counted and what "N a minute" means stands in `admit.lua`, how places on servers are given in `places.lua`. A
worker holds the truth about what it runs itself and tells it again after Redis has forgotten it. Without Redis each
worker goes by its share of the limits and of the places of a server, and that is logged.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog

from apps.gateway.access.signatures.nonce import Nonce, too_many, unchecked, used_before
from apps.gateway.limits.admission import (
    ADMITTED,
    CHOSEN,
    EACH,
    LEFT,
    POSITION,
    RETRY,
    ROOM_IS_FULL,
    SPENT,
    TOO_LONG,
    TOO_MANY_NONCES,
    UNKNOWN_SPENT,
    UNLIMITED,
    USED_BEFORE,
    WAITS,
    WHICH,
    Admission,
    Question,
    Verdict,
    chosen_place,
    held_on,
    overspent,
    refusal,
    standing,
)
from apps.gateway.limits.budgets import IN_PURSE, Claim, Purse
from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.quotas import NO_TERMS, Quota, Quotas
from apps.gateway.limits.scripts import ADMIT, IN_USE, RENAME
from apps.gateway.limits.share import Share
from apps.gateway.limits.sweeping import sweep_on
from apps.gateway.limits.untold import Untold
from apps.gateway.limits.waiting import Estimate, LostSight, Place, Room, Waiter, Wanted, too_many_wait
from apps.gateway.limits.workers import Workers
from apps.orchestration.fleet import Model
from citadel.background import Background
from citadel.caller import Caller
from citadel.gathering import Gathering
from citadel.redis import Argument, Redis, RedisError, RedisUnavailable
from citadel.sections import LimitsSection

log = structlog.get_logger("citadel.limits")

LEASE = 4.0
"""Seconds of silence after which a worker is dead and what it ran counts no more."""
HEARTBEAT = 0.5
RELEASE_WITHIN = 0.01
NARROW = 32
"""Requests at once that a client may have begun elsewhere before this worker hears of it."""
ON_SERVER = "@"
"""Stands before the name of a server, in whose places requests are counted as a client's are."""


class Limiter:
    """This worker's side of the limits. `ear` is a connection of its own on which Redis may be waited for; with each
    heartbeat Redis tells the `workers` how many there are.
    """

    def __init__(self, redis: Redis, ear: Redis, ledger: Ledger, limits: LimitsSection, workers: Workers):
        self._redis = redis
        self._ledger = ledger
        self._worker = secrets.token_hex(8)
        self._given_up: list[str] = []
        """Names that it had before, as long as Redis has not been told so."""
        self._global = (limits.global_.requests_per_minute, limits.global_.burst)
        self._quotas = Quotas(limits)
        self._own = Share(limits.global_, workers)
        self._workers = workers
        self._running: Counter[str] = Counter()
        self._untold = Untold()
        self._everywhere: dict[str, int] = {}
        """What ran for each holder in all workers together when Redis was last asked about it."""
        self._gathering: Gathering[Question, Verdict] = Gathering(self._ask, self._unclaimed)
        self._room = Room(ear, self._claim, self._give_place_back, self._release_now, self.doubt)
        self._tickets = itertools.count()
        self._background = Background("limits")
        self._asking = asyncio.Lock()
        """Held while Redis is asked: what a name counts for is not changed in the midst of that."""
        self._in_doubt = False
        self._blind = False
        """Whether Redis could not be asked of late."""
        self._flush: asyncio.TimerHandle | None = None

    async def admit(
        self,
        caller: Caller,
        model: Model,
        wanted: Wanted | None = None,
        *,
        tokens: int = 0,
        claims: Sequence[Claim] = (),
        counted: bool = True,
        nonce: Nonce | None = None,
        workload: bytes = b"",
    ) -> Admission:
        """Lets one request of `caller` to `model` in, to the first of the `wanted` servers that has a place.

        `tokens` are reserved where they are limited, and what it `claims` of budgets. Raises Refused, NoPlace, or
        Unavailable. Not `counted`: it takes no place among those that may run at once, and no tokens. The `nonce` is
        used up first, whatever comes then; Unauthenticated where it was before, LimitExceeded where its key brings too
        many. The request is to use the `workload` of that id, if it is the caller's for the model, and counts in its
        stead.
        """
        terms = self._quotas.terms(caller, model)
        reserved = tokens if terms.counts_tokens and counted else 0
        used = (workload, caller.key_id, model.name) if workload else ()
        question = Question(terms, wanted, self._ticket(), reserved, counted, claims, nonce, used)
        looks = self._room.looks
        try:
            verdict = await self._told(question)
            if verdict[0] == UNKNOWN_SPENT:
                await self._ledger.tell([claim.purse for claim in claims])
                verdict = await self._told(question._replace(nonce=None))
        except RedisError:
            return await self._admit_by_share(question)
        left = verdict[LEFT:]
        for number, quota in enumerate(terms.quotas):
            if quota.concurrent and counted:
                self._everywhere[quota.holder] = left[number * EACH + 2]
        return await self._judge(question, verdict, left, looks)

    async def _judge(self, question: Question, verdict: Verdict, left: Sequence[int], looks: int) -> Admission:
        terms = question.terms or NO_TERMS
        place = chosen_place(question.wanted, verdict[CHOSEN])
        admission = Admission(question, left, place)
        if verdict[0] == ADMITTED:
            return admission
        estimate = Estimate(verdict[POSITION], verdict[RETRY])
        if verdict[0] == WAITS:
            try:
                return admission._replace(place=await self._wait(question, estimate, looks))
            except BaseException:
                self._take_back(question)
                raise
        if verdict[0] in (ROOM_IS_FULL, TOO_LONG):
            raise too_many_wait(estimate, is_full=verdict[0] == ROOM_IS_FULL)
        if verdict[0] == USED_BEFORE:
            raise used_before()
        if verdict[0] == TOO_MANY_NONCES:
            raise too_many(verdict[RETRY])
        if verdict[0] in (SPENT, UNKNOWN_SPENT):  # unknown again: Redis has just forgotten all
            self._ledger.look_after(claim.purse for claim in question.claims)
            raise overspent(question.claims[verdict[WHICH]])
        told = standing(terms.quotas, left, verdict[RETRY])
        raise refusal(verdict[0], question, verdict[WHICH], verdict[RETRY], told)

    async def _admit_by_share(self, question: Question) -> Admission:
        """While Redis can't be asked."""
        if question.nonce:
            raise unchecked()
        refusing = await self._ledger.refusing(question.claims, self._running) if question.claims else None
        if refusing is not None:
            raise overspent(question.claims[refusing])
        verdict, which, retry = self._own.admit(question, self._running, time.monotonic())
        if verdict:
            raise refusal(verdict, question, which, math.ceil(retry * 1000), UNLIMITED)
        self._in_doubt = True  # of this Redis knows nothing
        self._begin(question)
        admission = Admission(question, (), None)
        try:
            return admission._replace(place=self._share(question.wanted))
        except BaseException:
            self._take_back(question)
            raise

    async def find_place(self, wanted: Wanted) -> Place | None:
        """The first server with a place, for a request that was admitted before; NoPlace.

        None where none of its servers is limited any more, or none is left.
        """
        question, looks = Question(None, wanted, self._ticket()), self._room.looks
        try:
            verdict = await self._told(question)
        except RedisError:
            return self._share(wanted)
        estimate = Estimate(verdict[POSITION], verdict[RETRY])
        if verdict[0] == WAITS:
            return await self._wait(question, estimate, looks)
        if verdict[0]:
            raise too_many_wait(estimate, is_full=verdict[0] == ROOM_IS_FULL)
        return chosen_place(wanted, verdict[CHOSEN])

    def at_once(self, caller: Caller, model: Model) -> Sequence[Quota]:
        """The quotas that bound how many requests of `caller` to `model` run at once."""
        return self._quotas.terms(caller, model).concurrent

    def look_again_soon(self) -> None:
        """Servers come, go or change: who waits is to wait for those that there are then."""
        self._room.look_again_soon()

    def release(self, admission: Admission) -> None:
        """The request has ended: the next call to Redis takes that along, within `RELEASE_WITHIN`.

        Where somebody may be near a limit Redis is told in this very moment, ahead of the answer to the client, whose
        next request then finds the place free whatever worker it meets.
        """
        near, quotas = False, admission.question.concurrent
        for quota in quotas:
            limit = quota.concurrent
            near = near or limit <= NARROW or self._everywhere.get(quota.holder, 0) * 2 >= limit
            self._take_off(quota.holder)
        if quotas:
            self._tell_soon(urgent=near)

    def settle(self, question: Question, used: int) -> None:
        """The tokens that a request had reserved are those that it has used: what is too much is free again, and so is
        all that it might have taken out of budgets.
        """
        for claim in question.claims:
            self._take_off(IN_PURSE + claim.purse.name, claim.amount)
        if question.tokens:
            self._own.settle(question, used, time.monotonic())
            self._untold.settled.append((question, used))
        if question.tokens or question.claims:
            self._tell_soon(urgent=False)

    def charge(self, purse: Purse, amount: int) -> None:
        """Takes what a request has used out of a purse. Redis is told of it together with what is settled then."""
        self._untold.charged[purse.name] += amount
        self._ledger.charge(purse, amount)
        self._tell_soon(urgent=False)

    def _take_back(self, question: Question) -> None:
        """The request was let in, and does not run after all."""
        self.settle(question, 0)
        self.release(Admission(question, (), None))

    def leave(self, place: Place) -> None:
        """The request has ended there. Where somebody may wait for its place, Redis is told in this very moment; the
        others' share of what runs there is taken to be like this worker's.
        """
        if place.held:
            holder = ON_SERVER + place.server
            self._give_back(holder, urgent=self._running[holder] * self._workers.count * 2 >= place.limit)

    async def in_use(self, model: str, servers: Sequence[str]) -> Sequence[int]:
        """Places that are taken on each server, and how many requests wait for the model.

        Raises RedisError.
        """
        found: Sequence[int] = await self._redis.script(IN_USE, (model, *servers))
        return found

    @property
    def redis(self) -> Redis:
        """Where it counts, for those who keep something beside it."""
        return self._redis

    @contextlib.asynccontextmanager
    async def under_its_name(self) -> AsyncIterator[str]:
        """The name under which Redis counts what this worker runs; it stays the same meanwhile."""
        async with self._asking:
            yield self._worker

    def took_over(self, place: Place) -> None:
        """A place that somebody else held has been counted for this worker, under its name."""
        if place.held:
            self._claim(place.server)

    def doubt(self) -> None:
        """Redis may count something of ours that we don't know of."""
        self._in_doubt = True

    @property
    def running(self) -> int:
        """Places that this worker's requests take at the moment."""
        return self._running.total()

    def _ticket(self) -> str:
        return f"{self._worker}{next(self._tickets):08x}"  # of the same moment the earlier is the lower

    async def _told(self, question: Question) -> Verdict:
        if question.wanted:
            self._room.expect(question.ticket)
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
                self._room.expect_no_more(question.ticket)

    async def _wait(self, question: Question, estimate: Estimate, looks: int) -> Place | None:
        wanted = question.wanted
        assert wanted is not None  # noqa: S101  # who waits waits for something
        waiter = Waiter(question.ticket, wanted, estimate)
        try:
            if not waiter.ticket.startswith(self._worker):  # it stands in a line under a name that is given up
                self._room.give_up(self._worker, waiter.ticket)
                raise LostSight
            return await self._room.wait(self._worker, waiter, looks)
        except LostSight:
            now = wanted.again() if wanted.again else wanted
            left = max(0.0, wanted.patience - waiter.waited_ms / 1000)
            return await self.find_place(now._replace(patience=left)) if now else None

    def _share(self, wanted: Wanted | None) -> Place | None:
        """The first server of whose places this worker's share is not used up, while Redis can't be asked."""
        for server, limit in wanted.servers if wanted else ():
            if not limit:
                return Place(server, held=False)
            if self._running[ON_SERVER + server] < max(1, limit // self._workers.count):
                self._claim(server)
                self._in_doubt = True  # of this Redis knows nothing
                return Place(server, held=True)
        if wanted:
            raise too_many_wait(Estimate(1, wanted.hold_ms), is_full=True)
        return None

    def _claim(self, server: str) -> None:
        self._running[ON_SERVER + server] += 1

    def _give_place_back(self, server: str) -> None:
        self._give_back(ON_SERVER + server, urgent=True)

    def start(self) -> None:
        """Begins to tell Redis that this worker lives, and to look after those that don't."""
        self._background.begin(self._beat())
        self._background.begin(sweep_on(self._redis))

    async def stop(self) -> None:
        """Takes this worker's places back."""
        await self._background.stop()
        await self._room.stop()
        if self._flush:
            self._flush.cancel()
        with contextlib.suppress(RedisError):
            self._given_up.append(self._worker)
            await self._tell_name("", ())

    async def _beat(self) -> None:
        while True:
            try:
                if self._in_doubt:
                    self._workers.lost(time.monotonic())
                    await self._take_new_name()
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
            self._ledger.look_soon()
        self._blind = blind

    async def _ask(self, asked: list[Question], *, look_after_all: bool = False) -> Sequence[Verdict]:
        verdicts: list[Verdict]
        async with self._asking:
            try:
                known, *verdicts = await self._redis.script(ADMIT, self._arguments(asked, look_after_all))
            except BaseException:
                self._in_doubt = True
                raise
            self._note(asked, verdicts)
            self._hear(known)
            if look_after_all:
                self._workers.told(known, time.monotonic())
        return verdicts

    def _note(self, asked: Sequence[Question], verdicts: Sequence[Verdict]) -> None:
        """What Redis counts for this worker from now on."""
        for question, verdict in zip(asked, verdicts, strict=True):
            if verdict[0] in (ADMITTED, WAITS):
                self._begin(question)
            if server := held_on(question.wanted, verdict[CHOSEN]):
                self._claim(server)

    def _begin(self, question: Question) -> None:
        for quota in question.concurrent:
            self._running[quota.holder] += 1
        for claim in question.claims:
            self._running[IN_PURSE + claim.purse.name] += claim.amount

    def _hear(self, known: int) -> None:
        """Where Redis did not know this worker any more, what that runs and who waits here counts no longer."""
        if not known and (self.running or self._room.is_waited_in):
            self._in_doubt = True

    def _arguments(self, asked: Sequence[Question], look_after_all: bool = False) -> list[Argument]:
        """Of the script: what was asked, and what has been released since it was last told."""
        arguments: list[Argument] = [self._worker, int(LEASE * 1000), *self._global, int(look_after_all)]
        arguments += self._untold.take()
        arguments += (len(self._room.left), *self._room.left)
        self._room.left.clear()
        arguments.append(len(self._room.moved))
        for waiter in self._room.moved:
            arguments += waiter.wanted.arguments(waiter.ticket)
        self._room.moved.clear()
        arguments.append(len(asked))
        for question in asked:
            arguments += question.arguments()
        return arguments

    def _unclaimed(self, question: Question, verdict: Verdict) -> None:
        """Its client left while Redis was deciding."""
        if verdict[0] == WAITS:
            self._room.give_up(self._worker, question.ticket)
        if question.terms and verdict[0] in (ADMITTED, WAITS):
            self._take_back(question)
        if place := chosen_place(question.wanted, verdict[CHOSEN]):
            self.leave(place)

    def _give_back(self, holder: str, *, urgent: bool) -> None:
        self._take_off(holder)
        self._tell_soon(urgent=urgent)

    def _take_off(self, holder: str, amount: int = 1) -> None:
        self._running[holder] -= amount
        if not self._running[holder]:
            del self._running[holder]
            self._everywhere.pop(holder, None)
        if amount:
            self._untold.released[holder] += amount

    def _tell_soon(self, *, urgent: bool) -> None:
        if urgent:
            self._release_now()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(RELEASE_WITHIN, self._flush_now)

    def _release_now(self) -> None:
        """A call of its own, on the wire when this returns; nobody waits for what comes of it."""
        try:
            told = self._redis.call("EVALSHA", ADMIT.digest, 0, *self._arguments(()))
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
        if self._untold:
            self._gathering.nudge()

    async def _take_new_name(self) -> None:
        """After a call whose fate isn't known, our count in Redis may be wrong: what we run is told anew as another
        worker, and the old one is dead. Who waits asks anew.
        """
        if not self._redis.available:  # nothing would be sent: the next name may be the first that is
            raise RedisUnavailable("limits")
        async with self._asking:
            self._given_up.append(self._worker)
            self._worker = secrets.token_hex(8)
            self._in_doubt = False
            self._room.ask_again()  # before it is told what runs: what is granted to the old name is void
            self._untold.released.clear()
            running = [part for holder in self._running.items() for part in holder]
            # By its text, which is told in one message, before anything under the new name.
            await self._tell_name(self._worker, running)
            self._given_up.clear()

    async def _tell_name(self, new: str, running: Sequence[Argument]) -> None:
        old = self._given_up
        await self._redis.call("EVAL", RENAME.text, 0, new, int(LEASE * 1000), len(old), *old, *running)
