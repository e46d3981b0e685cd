"""Walks a plan: the next server when one fails, as long as nothing has reached the client."""

import asyncio
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import structlog

from apps.gateway.inference.calls.asking import Ask, Asking
from apps.gateway.inference.calls.call import Call
from apps.gateway.inference.calls.hedge import Backups, first_of_two
from apps.gateway.inference.calls.placing import WITHOUT_WAITING, NoneLeft, Placing
from apps.gateway.inference.calls.retries import Bucket
from apps.gateway.inference.calls.suspects import Suspects
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import LACKS, LOOP, Failure
from apps.gateway.inference.http.words import PAST_CONTEXT
from apps.gateway.inference.names import no_server
from apps.gateway.limits.allowance import Allowance
from apps.gateway.limits.limiter import Limiter
from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.pace import Key
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.trials import FIRST_BACKOFF
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router
from citadel.errors import BackendFailed, BackendRefused, BadRequest, CitadelError
from citadel.sections import RoutingSection

log = structlog.get_logger("citadel.attempts")

BACKOFF = 0.02
"""Seconds before a second attempt, doubled for each further one, times a random share. None after a refusal."""

OF_A_SUSPECT = 2
"""Attempts, of which the first may meet a server that is known to keep everybody waiting."""

T = TypeVar("T")
Failures = list[tuple[Server, Failure]]


class Attempts:
    """Tries servers for requests until one answers; those for a whole answer have `deadline` seconds in all."""

    def __init__(
        self,
        router: Router,
        standings: Standings,
        watch: Watch,
        limiter: Limiter,
        routing: RoutingSection,
        workers: int,
        deadline: float,
    ):
        self._limiter = limiter
        self._most = routing.attempts
        self._retries = Bucket.of_worker(routing.retry_budget, time.monotonic(), workers)
        self._backups = Backups(router.paces, Allowance(limiter.redis, routing.hedge_budget))
        self._suspects = Suspects(watch)
        self._asking = Asking(router, standings, watch, limiter, routing, self._suspects, deadline)
        self.placing = Placing(router, watch, limiter, routing)
        self.verdicts = self._asking.verdicts

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self.placing.follow(fleet)
        self._asking.follow(fleet)
        self._backups.forget()

    async def run(self, plan: Plan, exchange: Exchange, ask: Ask[T]) -> T:
        """The first answer that a server of the plan gives to `ask`: a whole one, or the beginning of a stream.

        What went before it stands in the record. Raises the last server's Failure, BackendRefused for the client's own
        fault, BadRequest where no server can do what is asked, Unavailable when there is none or none was reached.
        """
        self._retries.earn()
        self._backups.earn(exchange.model)
        exchange.suspected = self._suspects.suspected_at(exchange.body, time.monotonic()) is not None
        failures: Failures = []
        try:
            call = await self._walk(plan, exchange, ask, failures)
            if call:
                if exchange.suspected:
                    self._suspects.absolve(exchange.body)
                self._serve(exchange, call)
                return call.answer
            if not failures:  # there was no server, or all have gone while the request waited for a place
                raise _unavailable(plan, exchange.request.model)
            raise _verdict(plan, exchange.request.model, failures)
        finally:
            failures.clear()  # they hold this frame, which would hold them until the collector comes

    def ended(self, exchange: Exchange) -> None:
        """The request's answer is whole, or nobody wants it any more: its server has room for another."""
        if exchange.call:
            self._asking.ended(exchange.call)
        self._leave_place(exchange)

    def _leave_place(self, exchange: Exchange) -> None:
        if exchange.place:
            self._limiter.leave(exchange.place)
            exchange.place = None

    def _serve(self, exchange: Exchange, call: Call[T]) -> None:
        """A server has begun to answer, or has: its place is held until the end."""
        exchange.call = call
        exchange.record.server = call.server.server_id

    async def _walk(self, plan: Plan, exchange: Exchange, ask: Ask[T], failures: Failures) -> Call[T] | None:
        """The call that was answered; None when none was, after these `failures`.

        Raises BackendRefused, where no server with a longer context can take what is too long for one.
        """
        call: Call[T] | None
        remaining, refusal = list(plan.order), None
        exchange.others = remaining
        trial = await self._begin_trial(plan.trial, plan, exchange) if plan.trial else None
        for number in range(self._most):
            if number and not (self._has_more(remaining, exchange) and await self._goes_on(number, exchange, failures)):
                break
            try:
                call = trial if trial and not number else self._at_once(remaining, exchange)
                call = call or await self._next(remaining, exchange)
            except NoneLeft:
                break
            may_race = bool(remaining) and self._most > 1 and not (number or trial or exchange.suspected)
            after = self._backups.after(exchange.model, exchange.streams) if may_race else None
            try:
                if after:
                    return await self._race(after, call, remaining, exchange, ask, failures)
                return await self._asking.ask(call, exchange, ask)
            except Failure as failure:
                exchange.record.server, exchange.is_answered = call.server.server_id, False
                failures.append((call.server, failure.with_traceback(None)))
                if self._accuse(exchange, failures) or (exchange.suspected and number + 1 >= OF_A_SUSPECT):
                    break
            except BackendRefused as refused:
                remaining[:] = _longer(remaining, call.server, exchange.model) if refused.code == PAST_CONTEXT else ()
                if not remaining:
                    raise
                refusal = refused
        if refusal and not failures:
            raise refusal
        return None

    def _has_more(self, remaining: list[Server], exchange: Exchange) -> bool:
        """Whether another server may be tried, of those that take requests now: in a race two were."""
        remaining[:] = self.verdicts.present(remaining)
        return bool(remaining) and len(exchange.record.attempts) < self._most

    async def _begin_trial(self, server: Server, plan: Plan, exchange: Exchange) -> Call[Any] | None:
        """The plan's trial, if it is this request's turn; a place that the request has elsewhere is for others then,
        who would wait for it as long as the trial takes.
        """
        turn, place = await self.placing.begin_trial(server, exchange, lonely=not plan.order)
        if not turn:
            return None
        self._leave_place(exchange)
        return Call(server, place, _key(exchange, server), is_trial=True)

    def _at_once(self, remaining: list[Server], exchange: Exchange) -> Call[Any] | None:
        """The next call, where it is known without asking for a place: as most are."""
        server, place = self.placing.take_at_once(remaining, exchange)
        return Call(server, place, _key(exchange, server)) if server else None

    async def _next(self, remaining: list[Server], exchange: Exchange, *, patience: float | None = None) -> Call[Any]:
        server, place = await self.placing.take_next(remaining, exchange, patience=patience)
        return Call(server, place, _key(exchange, server))

    async def _race(
        self,
        after: float,
        first: Call[T],
        remaining: list[Server],
        exchange: Exchange,
        ask: Ask[T],
        failures: Failures,
    ) -> Call[T]:
        """Asks a second server too when the first is silent for `after` seconds; the call that answers first.

        Raises the first one's failure when both have failed; the second one's is put to the `failures`.
        """
        calls, winner = [first], None
        model = exchange.model  # another one, of another class perhaps, once the request has been planned anew

        async def allowed(late: bool) -> bool:
            return not exchange.is_answered and await self._backups.allowed(model, late)

        async def second() -> Call[T]:
            call: Call[T] | None = None
            try:
                remaining[:] = self.verdicts.present(remaining)
                call = await self._next(remaining, exchange, patience=WITHOUT_WAITING)
            finally:
                if call is None:  # there is no place, or the first has answered
                    self._backups.give_back(model)
            calls.append(call)
            try:
                return await self._asking.ask(call, exchange, ask)
            except Failure as failure:
                exchange.is_answered = False
                failures.append((call.server, failure))
                raise

        try:
            asked, give_back = self._asking.ask(first, exchange, ask), partial(self._backups.give_back, model)
            winner = await first_of_two(asked, second, after, allowed, give_back, self._asking.throw_away)
            return winner
        finally:
            if first.place and not first.started:  # cancelled before it had begun
                self._limiter.leave(first.place)
            for call in calls:
                if call.started and not call.is_over:
                    self._asking.overtaken(call, is_lost=winner is not None)

    async def _goes_on(self, number: int, exchange: Exchange, failures: Failures) -> bool:
        """Whether another server is tried after a failure, which a little pause precedes unless nothing was sent.

        It costs nothing of the budget where nothing was sent, nor where the request was called back: then it is no
        load more for the servers that are left.
        """
        failed = failures if number == 1 else failures[-1:]  # in a race, which only the first attempt is, two have
        if all(failure.refused for _, failure in failed):
            return True
        is_load = not all(failure.refused or failure.moved for _, failure in failed)
        if is_load and not self._retries.spend(time.monotonic()):
            log.warning("no_retry_left", model=exchange.model.name)
            return False
        await asyncio.sleep(BACKOFF * 2**number * random.random())  # noqa: S311  # jitter, no secret
        return True

    def _accuse(self, exchange: Exchange, failures: Failures) -> bool:
        """Whether a request that fails is itself to blame, as it has made two servers fail or wait in vain; then those
        that it made fail are not. Who waited may hang all the same: that is found by others' requests.
        """
        harmed = [failed for failed in failures if failed[1].damaging or failed[1].late]
        if not harmed or harmed[-1] is not failures[-1]:
            return False
        if not exchange.suspected:
            if len(harmed) != 2 or not self._suspects.accuse(exchange.body, time.monotonic()):
                return False
            exchange.suspected = True
            names = [server.server_id for server, _ in harmed]
            log.warning("request_suspected", model=exchange.model.name, servers=names)
        for server, failure in harmed:
            if failure.blamed and failure.damaging:
                self.verdicts.forgive(server, counted=failure.counted)
        return True


def _longer(servers: Sequence[Server], than: Server, model: Model) -> list[Server]:
    """Those that take longer requests to a model than a server which has found one too long."""
    least = model.context_on(than.server_id)
    return [server for server in servers if model.context_on(server.server_id) > least]


def _key(exchange: Exchange, server: Server) -> Key:
    return Key(exchange.model.name, server.server_id, exchange.streams)


def _unavailable(plan: Plan, model: str) -> CitadelError:
    if plan.lacking:
        message = f"No server of the model '{model}' can do what is asked: {plan.lacking}."
        return BadRequest(message, code="unsupported_by_model")
    return no_server(model, plan.retry_after)


def _verdict(plan: Plan, model: str, failures: Sequence[tuple[Server, Failure]]) -> Exception:
    """What the client is told when nobody has answered; what some have not got, only where all else is well.

    Servers that lead back here count as none where one is away that has the model: it will be back.
    """
    failures = [failed for failed in failures if failed[1].reason not in LACKS] or failures
    last = failures[-1][1]
    none_asked = last.refused and all(failure.refused or failure.moved for _, failure in failures)
    all_lead_back = all(failure.reason == LOOP for _, failure in failures)
    if none_asked or (all_lead_back and any(one.is_away for one in plan.dropped)):
        return _unavailable(plan._replace(retry_after=plan.retry_after or FIRST_BACKOFF), model)
    if sum(failure.damaging for _, failure in failures) >= 2 and last.damaging:
        return Failure(last.reason, BackendFailed("The servers that were tried failed on this request."), blamed=False)
    busy = [failure for _, failure in failures if failure.error.retry_after]  # who says when, says most
    return (busy or [failure for _, failure in failures if not failure.refused] or [last])[-1]
