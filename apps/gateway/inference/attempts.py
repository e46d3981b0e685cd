"""Walks a plan: the next server when one fails, as long as nothing has reached the client."""

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog

from apps.gateway.inference.call import Call
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.failures import Failure
from apps.gateway.inference.first_byte import FirstByte
from apps.gateway.inference.hedge import Backups, Closable, first_of_two
from apps.gateway.inference.moves import Moves
from apps.gateway.inference.names import no_server
from apps.gateway.inference.retries import Bucket
from apps.gateway.inference.suspects import Suspects
from apps.gateway.inference.verdicts import Verdicts
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace, Place, Wanted
from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.pace import Key
from apps.orchestration.health.passive import FIRST_BACKOFF, Standings
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router
from citadel.errors import BackendFailed, BackendRefused, BackendTimeout, BadRequest, CitadelError
from citadel.sections import RoutingSection

log = structlog.get_logger("citadel.attempts")

BACKOFF = 0.02
"""Seconds before a second attempt, doubled for each further one, times a random share. None after a refusal."""
WITHOUT_WAITING = 0.0
"""How patient backup requests and trials are where a server has no place for them."""
MODEL_BACK_IN = 30.0
"""Seconds after which to ask again for a model that has gone."""

T = TypeVar("T")
Ask = Callable[[Server, float], Awaitable[T]]
"""Asks a server, which has so many seconds for its first byte."""


class _NoneLeft(Exception):
    """While a request waited for a place, the last server went that it might have gone to."""


class Attempts:
    """Tries servers for requests, and tells how it went (`verdicts.py`)."""

    def __init__(
        self,
        router: Router,
        standings: Standings,
        watch: Watch,
        limiter: Limiter,
        routing: RoutingSection,
        workers: int,
    ):
        self._router = router
        self._standings = standings
        self._watch = watch
        self._limiter = limiter
        self._routing = routing
        self._models: Mapping[str, Model] = {}
        self._first_byte = FirstByte(router.paces, watch, routing)
        self._retries = Bucket(routing.retry_budget, time.monotonic())
        self._backups = Backups(router.paces, routing.hedge_budget, workers)
        self._suspects = Suspects()
        self._moves = Moves()
        watch.on_silence = self._moves.move
        self.verdicts = Verdicts(standings, watch, self._moves, routing)

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self._models = fleet.models
        self.verdicts.follow(fleet)
        self._first_byte.forget()
        self._backups.forget()

    async def run(self, plan: Plan, exchange: Exchange, ask: Ask[T]) -> T:
        """The first answer that a server of the plan gives to `ask`: a whole one, or the beginning of a stream.

        What went before it stands in the record. Raises the last server's Failure, BackendRefused for the client's own
        fault, BadRequest where no server can do what is asked, Unavailable when there is none or none was reached.
        """
        self._retries.earn()
        self._backups.earn()
        remaining = list(plan.order)
        trial, held = await self._begin_trial(plan, exchange)
        if trial:
            remaining.insert(0, trial)
        if not remaining:
            raise _unavailable(plan, exchange.request.model)
        failures: list[tuple[Server, Failure]] = []
        try:
            for number in range(self._most(exchange)):
                if number and not (remaining and await self._goes_on(number, exchange, failures)):
                    break
                try:
                    is_trial = remaining[0] is trial
                    server, place = (remaining.pop(0), held) if is_trial else await self._next(remaining, exchange)
                except _NoneLeft:
                    break
                call: Call[T] = Call(server, place, _key(exchange, server), is_trial=is_trial)
                may_race = remaining and not (number or is_trial or exchange.suspected)
                after = self._backups.after(exchange.model, exchange.streams) if may_race else None
                try:
                    if after:
                        call = await self._race(after, call, remaining, exchange, ask, failures)
                    else:
                        await self._ask(call, exchange, ask)
                except Failure as failure:
                    exchange.record.server = server.server_id
                    failures.append((server, failure.with_traceback(None)))
                    if self._accuse(exchange, failures):
                        break
                    continue
                self._serve(exchange, call)
                return call.answer
            if not failures:  # while the request waited for a place all servers have gone
                raise _unavailable(plan, exchange.request.model)
            raise _verdict(plan, exchange.request.model, failures)
        finally:
            failures.clear()  # they hold this frame, which would hold them until the collector comes

    def plan_again(self, exchange: Exchange) -> Plan:
        """The plan of a request as things are now."""
        model = self._models.get(exchange.model.name)
        if model is None:
            return Plan((), retry_after=MODEL_BACK_IN)
        exchange.model = model
        return self._router.plan(model, exchange.needs)

    def wanted(
        self,
        exchange: Exchange,
        servers: Sequence[Server],
        again: Callable[[], Wanted | None] | None = None,
        *,
        patience: float | None = None,
    ) -> Wanted | None:
        """What to ask the limiter for: the servers up to the first without a limit; None where that is the first.

        `again` gives the same as it is later.
        """
        if not servers or not servers[0].max_concurrent:
            return None
        named: list[tuple[str, int]] = []
        for server in servers:
            named.append((server.server_id, server.max_concurrent))
            if not server.max_concurrent:
                break
        return Wanted(
            exchange.model.name,
            exchange.caller.team,
            exchange.priority,
            tuple(named),
            self._routing.queue_size,
            self._routing.queue_timeout if patience is None else patience,
            self._router.usual_hold(exchange.model.name) * 1000,
            (time.monotonic() - exchange.started) * 1000,
            again,
        )

    def ended(self, exchange: Exchange) -> None:
        """The request's answer is whole, or nobody wants it any more: its server has room for another."""
        call = exchange.call
        if call and call.is_running:
            self._router.held(call.key.model, time.monotonic() - call.started)
            self._leave(call)
        if exchange.place:
            self._limiter.leave(exchange.place)
            exchange.place = None

    def _serve(self, exchange: Exchange, call: Call[T]) -> None:
        """A server has begun to answer, or has: its place is held until the end."""
        if exchange.place:  # meant for another server, where a trial has answered
            self.ended(exchange)
        exchange.call = call
        exchange.record.server = call.server.server_id

    async def _ask(self, call: Call[T], exchange: Exchange, ask: Ask[T]) -> Call[T]:
        """Asks the call's server; the call, with its answer and its place, or what `ask` raises, and the place is free.

        What that says of the server is taken note of.
        """
        name = call.server.server_id
        self._router.in_flight[name] += 1
        call.begin(exchange.record)
        if call.is_trial:
            self._standings.begin_trial(name, call.started)
        try:
            with self._moves.waiting_for(name):
                call.answer = await ask(call.server, self._patience(call, exchange.model))
        except BaseException as error:
            self._leave(call)
            if not call.is_over:
                self._failed(call, exchange, error)
            raise
        if not call.is_over:
            self._answered(call, whole=not exchange.streams)
        return call

    def _answered(self, call: Call[T], *, whole: bool) -> None:
        seconds = call.end("ok")
        self._router.paces[call.key].answered(seconds, call.started + seconds)
        self.verdicts.succeeded(call.server, whole=whole)

    def _failed(self, call: Call[T], exchange: Exchange, error: BaseException) -> None:
        if isinstance(error, Failure):
            seconds = call.end(error.reason)
            if not error.moved:
                self._router.paces[call.key].failed(seconds, call.started + seconds)
            self._blame(call, exchange, error)
        elif isinstance(error, BackendRefused):
            call.end("refused_request")
            exchange.record.server = call.server.server_id
            self.verdicts.succeeded(call.server)
        else:
            call.end("cancelled")
            self._abandon_trial(call)

    def _blame(self, call: Call[T], exchange: Exchange, failure: Failure) -> None:
        """What a failure says of the server, if anything."""
        server = call.server
        if self._suspects and failure.damaging and _digest(exchange.body) in self._suspects:
            exchange.suspected = True  # by now
        failure.blamed = failure.blamed and not exchange.suspected
        if failure.blamed:
            refused, told = failure.refused, failure.told
            self.verdicts.failed(server, failure.reason, refused=refused, trial=call.is_trial, told=told)
        else:
            self._abandon_trial(call)
        if failure.pause:
            self.verdicts.pause(server, exchange.model, failure)

    def _abandon_trial(self, call: Call[T]) -> None:
        if call.is_trial:
            self._standings.abandon_trial(call.server.server_id)

    async def _race(
        self,
        after: float,
        first: Call[T],
        remaining: list[Server],
        exchange: Exchange,
        ask: Ask[T],
        failures: list[tuple[Server, Failure]],
    ) -> Call[T]:
        """Asks a second server too when the first has not answered `after` seconds; the call that answers first.

        Raises the first one's failure when both have failed; the second one's is put to the `failures`.
        """
        calls, winner = [first], None

        async def second() -> Call[T]:
            try:
                server, place = await self._next(remaining, exchange, patience=WITHOUT_WAITING)
            except NoPlace:  # it may be free when the first server fails
                self._backups.give_back()
                raise
            calls.append(Call(server, place, _key(exchange, server)))
            try:
                return await self._ask(calls[1], exchange, ask)
            except Failure as failure:
                failures.append((server, failure))
                raise

        try:
            allowed = self._backups.allowed
            winner = await first_of_two(self._ask(first, exchange, ask), second, after, allowed, self._throw_away)
            return winner
        finally:
            if first.place and not first.started:  # cancelled before it had begun
                self._limiter.leave(first.place)
            for call in calls:
                if call.started and not call.is_over:
                    self._overtaken(call, is_lost=winner is not None)

    def _overtaken(self, call: Call[T], *, is_lost: bool) -> None:
        """Nobody waits for a call any longer: it is being cancelled, and leaves its place when that has reached it."""
        seconds = call.end("cancelled")
        if is_lost:
            self._router.paces[call.key].lost(seconds, call.started + seconds)

    def _throw_away(self, call: Call[T]) -> None:
        """Lets go of an answer that came as another was given already."""
        if isinstance(call.answer, Closable):
            call.answer.close()
        self._leave(call)

    async def _begin_trial(self, plan: Plan, exchange: Exchange) -> tuple[Server | None, Place | None]:
        """The plan's trial if it is this request's turn, with a place there where the server has a limit."""
        if plan.trial is None:
            return None, None
        place = None
        if wanted := self.wanted(exchange, [plan.trial], patience=WITHOUT_WAITING):
            try:
                place = await self._limiter.find_place(wanted)
            except NoPlace:
                return None, None
        turn = False
        try:
            turn = await self._watch.take_trial(plan.trial.server_id, lonely=not plan.order)
        finally:
            if place and not turn:
                self._limiter.leave(place)
        return (plan.trial, place) if turn else (None, None)

    async def _next(
        self, remaining: list[Server], exchange: Exchange, *, patience: float | None = None
    ) -> tuple[Server, Place | None]:
        """Takes the next server out of those that remain, with a place there where it has a limit; NoPlace.

        While it waits for one, others may remain; _NoneLeft when there are none any more.
        """
        place, exchange.place = exchange.place, None
        if place is None and (wanted := self._still_wanted(exchange, remaining, patience)):
            place = await self._limiter.find_place(wanted)
        if place is None:
            if not remaining:
                raise _NoneLeft
            return remaining.pop(0), None
        for server in remaining:
            if server.server_id == place.server:
                remaining.remove(server)
                return server, place
        raise AssertionError("a place is held on a server that is not in the plan")

    def _still_wanted(
        self, exchange: Exchange, remaining: list[Server], patience: float | None = None
    ) -> Wanted | None:
        again = partial(self._wanted_again, exchange, remaining) if patience is None else None
        return self.wanted(exchange, remaining, again, patience=patience)

    def _wanted_again(self, exchange: Exchange, remaining: list[Server]) -> Wanted | None:
        """What a request wants that has tried some servers: the others that there are now, which then remain."""
        tried = {attempt["server"] for attempt in exchange.record.attempts}
        remaining[:] = [server for server in self.plan_again(exchange).order if server.server_id not in tried]
        return self._still_wanted(exchange, remaining)

    async def _goes_on(self, number: int, exchange: Exchange, failures: Sequence[tuple[Server, Failure]]) -> bool:
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

    def _accuse(self, exchange: Exchange, failures: Sequence[tuple[Server, Failure]]) -> bool:
        """Whether a request that fails is itself to blame, as it has made two servers fail; then they are not."""
        damaged = [(server, failure) for server, failure in failures if failure.damaging]
        if not exchange.suspected:
            if len(damaged) != 2 or not failures[-1][1].damaging:
                return False
            if not self._suspects.accuse(_digest(exchange.body), time.monotonic()):
                return False
            exchange.suspected = True
            names = [server.server_id for server, _ in damaged]
            log.warning("request_suspected", model=exchange.model.name, servers=names)
        for server, failure in damaged:
            if failure.blamed:
                self.verdicts.forgive(server)
        return True

    def _most(self, exchange: Exchange) -> int:
        """Servers that are tried for a request; for one that has made servers fail before, one."""
        if self._suspects:
            self._suspects.forget(time.monotonic())
            exchange.suspected = _digest(exchange.body) in self._suspects
        return 1 if exchange.suspected else self._routing.attempts

    def _patience(self, call: Call[T], model: Model) -> float:
        """Seconds that the server has for its first byte."""
        if call.is_trial:
            return self._first_byte.limit_of_trial(call.key, call.server, model)
        return self._first_byte.limit(call.key, call.server)

    def _leave(self, call: Call[T]) -> None:
        """The server has room for another."""
        call.is_running = False
        self._router.in_flight[call.server.server_id] -= 1
        if call.place:
            self._limiter.leave(call.place)


def _key(exchange: Exchange, server: Server) -> Key:
    return Key(exchange.model.name, server.server_id, exchange.streams)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


def _unavailable(plan: Plan, model: str) -> CitadelError:
    if plan.lacking:
        message = f"No server of the model '{model}' can do what is asked: {plan.lacking}."
        return BadRequest(message, code="unsupported_by_model")
    return no_server(model, plan.retry_after)


def _verdict(plan: Plan, model: str, failures: list[tuple[Server, Failure]]) -> Exception:
    """What the client is told when nobody has answered."""
    last = failures[-1][1]
    if last.refused and all(failure.refused or failure.moved for _, failure in failures):
        return _unavailable(plan._replace(retry_after=plan.retry_after or FIRST_BACKOFF), model)
    if sum(failure.damaging for _, failure in failures) >= 2 and last.damaging:
        kind = BackendTimeout if isinstance(last.error, BackendTimeout) else BackendFailed
        return Failure(last.reason, kind("The servers that were tried failed on this request."), blamed=False)
    return last
