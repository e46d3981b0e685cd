"""Decides whether a request may run, and where: all requests of a turn of the loop in one round trip to Redis.

What is counted and what "N a minute" means stands in `admit.lua`, how places on servers are given in `places.lua`.
Without Redis each worker goes by its share of the limits and of the places of a server, and that is logged.
"""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from apps.gateway.access.signatures.nonce import Nonce, too_many, unchecked, used_before
from apps.gateway.limits.admission import (
    ADMITTED,
    CHOSEN,
    EACH,
    LEFT,
    POSITION,
    RETRY,
    ROOM_IS_FULL,
    SINCE,
    SPENT,
    TOO_LONG,
    TOO_MANY_NONCES,
    UNKNOWN_SPENT,
    UNLIMITED,
    USED_BEFORE,
    WAITS,
    WHICH,
    Admission,
    Overspent,
    Question,
    Verdict,
    chosen_place,
    refusal,
    standing,
)
from apps.gateway.limits.budgets import IN_PURSE, Claim, Purse
from apps.gateway.limits.ledger import Ledger
from apps.gateway.limits.quotas import NO_TERMS, Quota, Quotas
from apps.gateway.limits.scripts import IN_USE
from apps.gateway.limits.share import Share
from apps.gateway.limits.tally import ON_SERVER
from apps.gateway.limits.waiting import Estimate, LostSight, Place, Waiter, Wanted, too_many_wait
from apps.gateway.limits.worker import Worker
from apps.gateway.limits.workers import Workers
from apps.orchestration.fleet import Model
from citadel.caller import Caller
from citadel.redis import Redis, RedisError
from citadel.sections import LimitsSection

NARROW = 32
"""Requests at once that a client may have begun elsewhere before this worker hears of it."""


class Limiter:
    """This worker's side of the limits; `ear` and `workers` are as for `Worker`."""

    def __init__(self, redis: Redis, ear: Redis, ledger: Ledger, limits: LimitsSection, workers: Workers):
        self._ledger = ledger
        self._quotas = Quotas(limits)
        self._own = Share(limits.global_, workers)
        self._workers = workers
        self._worker = Worker(redis, ear, limits.global_, workers, self._unclaimed, ledger.look_soon)
        self._tally = self._worker.tally
        self._room = self._worker.room
        self._everywhere: dict[str, int] = {}
        """What ran for each holder in all workers together when Redis was last asked about it."""

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
        question = Question(terms, wanted, self._worker.ticket(), reserved, counted, claims, nonce, used)
        looks = self._room.looks
        try:
            verdict = await self._ask(question)
        except RedisError:
            return await self._admit_by_share(question)
        left = verdict[LEFT:]
        for number, quota in enumerate(terms.quotas):
            if quota.concurrent and counted:
                self._everywhere[quota.holder] = left[number * EACH + 2]
        return await self._judge(question, verdict, left, looks)

    async def claim(self, claims: Sequence[Claim], held: Sequence[int]) -> Question:
        """More of budgets for a request that runs: what is to be settled when that has ended. `held` is what it has
        claimed of each before.

        Raises Overspent, where not so much is left, or Unavailable, where nobody knows.
        """
        question = Question(None, None, self._worker.ticket(), claims=claims)
        try:
            verdict = await self._ask(question)
        except RedisError:
            await self._check_by_share(claims, held)
            self._begin_by_share(question)
            return question
        if verdict[0]:
            raise self._overspent(question, verdict)
        return question

    async def _ask(self, question: Question) -> Verdict:
        """Asks Redis, once more where it doesn't know what has been spent. RedisError, Unavailable."""
        verdict = await self._worker.ask(question)
        if verdict[0] == UNKNOWN_SPENT:
            await self._ledger.tell([claim.purse for claim in question.claims])
            verdict = await self._worker.ask(question._replace(nonce=None))
        return verdict

    async def _judge(self, question: Question, verdict: Verdict, left: Sequence[int], looks: int) -> Admission:
        terms = question.terms or NO_TERMS
        place = chosen_place(question.wanted, verdict[CHOSEN])
        admission = Admission(question, left, place)
        if verdict[0] == ADMITTED:
            return admission
        estimate = Estimate(verdict[POSITION], verdict[RETRY])
        if verdict[0] == WAITS:
            try:
                place = await self._wait(question, estimate, looks)
            except BaseException:
                self._turn_out(question, verdict[SINCE])
                raise
            self._tally.place()
            return admission._replace(place=place)
        if verdict[0] in (ROOM_IS_FULL, TOO_LONG):
            raise too_many_wait(estimate, is_full=verdict[0] == ROOM_IS_FULL)
        if verdict[0] == USED_BEFORE:
            raise used_before()
        if verdict[0] == TOO_MANY_NONCES:
            raise too_many(verdict[RETRY])
        if verdict[0] in (SPENT, UNKNOWN_SPENT):
            raise self._overspent(question, verdict)
        told = standing(terms.quotas, left, verdict[RETRY])
        raise refusal(verdict[0], question, verdict[WHICH], verdict[RETRY], told)

    def _overspent(self, question: Question, verdict: Verdict) -> Overspent:
        """What one is told of whose claims there isn't enough; unknown again where Redis has just forgotten all."""
        self._ledger.look_after(claim.purse for claim in question.claims)
        return Overspent(question.claims[verdict[WHICH]])

    async def _admit_by_share(self, question: Question) -> Admission:
        """While Redis can't be asked."""
        if question.nonce:
            raise unchecked()
        await self._check_by_share(question.claims)
        verdict, which, retry = self._own.admit(question, self._tally.running, time.monotonic())
        if verdict:
            raise refusal(verdict, question, which, math.ceil(retry * 1000), UNLIMITED)
        self._begin_by_share(question)
        admission = Admission(question, (), None)
        try:
            return admission._replace(place=self._share(question.wanted))
        except BaseException:
            self._own.withdraw(question)
            self._take_back(question)
            raise

    async def _check_by_share(self, claims: Sequence[Claim], held: Sequence[int] = ()) -> None:
        refusing = await self._ledger.refusing(claims, self._tally.running, held) if claims else None
        if refusing is not None:
            raise Overspent(claims[refusing])

    def _begin_by_share(self, question: Question) -> None:
        self._worker.doubt()  # of this Redis knows nothing
        self._tally.begin(question)

    async def find_place(self, wanted: Wanted) -> Place | None:
        """The first server with a place, for a request that was admitted before; NoPlace.

        None where none of its servers is limited any more, or none is left.
        """
        question, looks = Question(None, wanted, self._worker.ticket()), self._room.looks
        try:
            verdict = await self._worker.ask(question)
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

    def count_in(self, admission: Admission | None, caller: Caller, model: Model) -> Admission:
        """The request goes on with another's call, let in or not yet: it is one of those that run at once from now on,
        even too many.
        """
        admission = admission or Admission(Question(self._quotas.terms(caller, model), None, ""), ())
        question = admission.question._replace(counted=True)
        for quota in question.concurrent:
            self._tally.run_on(quota.holder)
        if question.concurrent:
            self._worker.tell(now=False)
        return admission._replace(question=question)

    def release(self, admission: Admission) -> None:
        """The request has ended: the next call to Redis takes that along, within `RELEASE_WITHIN`.

        Where somebody may be near a limit Redis is told in this very moment, ahead of the answer to the client, whose
        next request then finds the place free whatever worker it meets.
        """
        near, quotas = False, admission.question.concurrent
        for quota in quotas:
            limit = quota.concurrent
            near = near or limit <= NARROW or self._everywhere.get(quota.holder, 0) * 2 >= limit
            self._end(quota.holder)
        if quotas:
            self._worker.tell(now=near)

    def settle(self, question: Question, used: int) -> None:
        """The tokens that a request had reserved are those that it has used: what is too much is free again, and so is
        all that it might have taken out of budgets.
        """
        for claim in question.claims:
            self._end(IN_PURSE + claim.purse.name, claim.amount)
        if question.tokens:
            self._own.settle(question, used, time.monotonic())
            self._tally.settle(question, used)
        if question.tokens or question.claims:
            self._worker.tell(now=False)

    def charge(self, purse: Purse, amount: int) -> None:
        """Takes what a request has used out of a purse. Redis is told of it together with what is settled then."""
        self._tally.charge(purse, amount)
        self._ledger.charge(purse, amount)
        self._worker.tell(now=False)

    def _take_back(self, question: Question) -> None:
        """The request was let in, and does not run after all."""
        self.settle(question, 0)
        self.release(Admission(question, (), None))

    def _turn_out(self, question: Question, since: int) -> None:
        """The request was let in to wait, and has got no place: it is as if it had never come."""
        self._tally.withdraw(question, since)
        self._take_back(question)
        self._worker.tell(now=False)

    def leave(self, place: Place) -> None:
        """The request has ended there. Where somebody may wait for its place, Redis is told in this very moment; the
        others' share of what runs there is taken to be like this worker's.
        """
        if place.held:
            holder = ON_SERVER + place.server
            near = self._tally.running[holder] * self._workers.count * 2 >= place.limit
            self._end(holder)
            self._worker.tell(now=near)

    async def in_use(self, model: str, servers: Sequence[str]) -> Sequence[int]:
        """Places that are taken on each server, and how many requests wait for the model.

        Raises RedisError.
        """
        found: Sequence[int] = await self.redis.script(IN_USE, (model, *servers))
        return found

    @property
    def redis(self) -> Redis:
        """Where it counts, for those who keep something beside it."""
        return self._worker.redis

    def under_its_name(self) -> AbstractAsyncContextManager[str]:
        """The name under which Redis counts what this worker runs; it stays the same meanwhile."""
        return self._worker.under_its_name()

    def took_over(self, place: Place) -> None:
        """A place that somebody else held has been counted for this worker, under its name."""
        if place.held:
            self._tally.claim(place.server)

    def doubt(self) -> None:
        """Redis may count something of ours that we don't know of."""
        self._worker.doubt()

    @property
    def running(self) -> int:
        """Places that this worker's requests take at the moment."""
        return self._tally.running.total()

    def start(self) -> None:
        """Begins to tell Redis that this worker lives, and to look after those that don't."""
        self._worker.start()

    async def stop(self) -> None:
        """Takes this worker's places back."""
        await self._worker.stop()

    async def _wait(self, question: Question, estimate: Estimate, looks: int) -> Place | None:
        wanted = question.wanted
        assert wanted is not None  # noqa: S101  # who waits waits for something
        waiter = Waiter(question.ticket, wanted, estimate)
        try:
            if not waiter.ticket.startswith(self._worker.name):  # it stands in a line under a name that is given up
                self._room.give_up(self._worker.name, waiter.ticket)
                raise LostSight
            return await self._room.wait(self._worker.name, waiter, looks)
        except LostSight:
            now = wanted.again() if wanted.again else wanted
            left = max(0.0, wanted.patience - waiter.waited_ms / 1000)
            return await self.find_place(now._replace(patience=left)) if now else None

    def _share(self, wanted: Wanted | None) -> Place | None:
        """The first server of whose places this worker's share is not used up, while Redis can't be asked."""
        for server, limit in wanted.servers if wanted else ():
            if not limit:
                return Place(server, held=False)
            if self._tally.running[ON_SERVER + server] < max(1, limit // self._workers.count):
                self._tally.claim(server)
                self._worker.doubt()  # of this Redis knows nothing
                return Place(server, held=True)
        if wanted:
            raise too_many_wait(Estimate(1, wanted.hold_ms), is_full=True)
        return None

    def _unclaimed(self, question: Question, verdict: Verdict) -> None:
        """Its client left while Redis was deciding."""
        if verdict[0] == WAITS:
            self._room.give_up(self._worker.name, question.ticket)
        if question.terms and verdict[0] == WAITS:
            self._turn_out(question, verdict[SINCE])
        elif verdict[0] == ADMITTED:
            self._take_back(question)
        if place := chosen_place(question.wanted, verdict[CHOSEN]):
            self.leave(place)

    def _end(self, holder: str, amount: int = 1) -> None:
        self._tally.end(holder, amount)
        if holder not in self._tally.running:
            self._everywhere.pop(holder, None)
