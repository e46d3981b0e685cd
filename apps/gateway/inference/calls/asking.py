"""A server is asked: how long it has for its first byte, what its answer or failure says, when its place is free."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from apps.gateway.inference.calls.call import Call
from apps.gateway.inference.calls.first_byte import FirstByte
from apps.gateway.inference.calls.hedge import Closable
from apps.gateway.inference.calls.moves import Moves
from apps.gateway.inference.calls.suspects import Suspects
from apps.gateway.inference.calls.verdicts import Verdicts
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import Failure
from apps.gateway.limits.limiter import Limiter
from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.router import Router
from citadel.errors import BackendRefused
from citadel.sections import RoutingSection

INEXACT = 0.1
"""Seconds by which what another worker has told may seem to have been later than it was."""

T = TypeVar("T")
Ask = Callable[[Server, float], Awaitable[T]]
"""Asks a server, which has so many seconds for its first byte."""


class Asking:
    """Takes calls to servers to their ends; a request for a whole answer has `deadline` seconds in all."""

    def __init__(
        self,
        router: Router,
        standings: Standings,
        watch: Watch,
        limiter: Limiter,
        routing: RoutingSection,
        suspects: Suspects,
        deadline: float,
    ):
        self._router = router
        self._standings = standings
        self._limiter = limiter
        self._suspects = suspects
        self._first_byte = FirstByte(router.paces, watch, routing, deadline)
        self._most = routing.attempts
        self._moves = Moves(self._has_elsewhere)
        watch.on_silence, watch.on_given_up = self._moves.move, self._moves.move_who_can
        self.verdicts = Verdicts(standings, watch, self._moves, routing)

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self.verdicts.follow(fleet)
        self._first_byte.forget()

    async def ask(self, call: Call[T], exchange: Exchange, ask: Ask[T]) -> Call[T]:
        """Asks the call's server; the call, with its answer and its place, or what `ask` raises, and the place is free.

        What that says of the server is taken note of.
        """
        name = call.server.server_id
        self._router.in_flight[name] += 1
        call.begin(exchange.record)
        exchange.calls.append(call)
        self._router.takes(call.key.model, call, call.started)
        if call.is_trial:
            self._standings.begin_trial(name, call.started)
        try:
            with self._moves.waiting_for(name, exchange):
                call.answer = await ask(call.server, self._patience(call, exchange.model))
        except BaseException as error:
            self._leave(call)
            if not call.is_over:
                self._failed(call, exchange, error)
            raise
        if not call.is_over:
            self._answered(call, whole=not exchange.streams)
        return call

    def overtaken(self, call: Call[T], *, is_lost: bool) -> None:
        """Nobody waits for a call any longer: it is being cancelled, and leaves its place when that has reached it."""
        seconds = call.end("cancelled")
        if is_lost and self.verdicts.is_there(call.server):
            self._router.paces[call.key].lost(seconds, call.started + seconds)

    def throw_away(self, call: Call[T]) -> None:
        """Lets go of an answer that came as another was given already."""
        if isinstance(call.answer, Closable):
            call.answer.close()
        self._leave(call)

    def ended(self, call: Call[T]) -> None:
        """The call's answer is whole, or nobody wants it any more."""
        if call.is_running:
            self._router.held(call.key.model, time.monotonic() - call.started)
            self._leave(call)

    def _answered(self, call: Call[T], *, whole: bool) -> None:
        seconds = call.end("ok")
        if self.verdicts.is_there(call.server):
            self._router.paces[call.key].answered(seconds, call.started + seconds)
        self.verdicts.succeeded(call.server, whole=whole, trial=call.is_trial)
        self._first_byte.answers(call.server.server_id, self._standings.moves)

    def _failed(self, call: Call[T], exchange: Exchange, error: BaseException) -> None:
        if isinstance(error, Failure):
            seconds = call.end(error.reason)
            if not error.moved and self.verdicts.is_there(call.server):
                self._router.paces[call.key].failed(seconds, call.started + seconds)
                if error.reason == "timeout":
                    self._first_byte.cut(call.key, seconds, self._standings.moves)
            self._blame(call, exchange, error)
        elif isinstance(error, BackendRefused):
            call.end("refused_request")
            exchange.record.server = call.server.server_id
            self.verdicts.succeeded(call.server, trial=call.is_trial)
        else:
            call.end("cancelled")
            self._abandon_trial(call)

    def _blame(self, call: Call[T], exchange: Exchange, failure: Failure) -> None:
        """What a failure says of the server, if anything."""
        server = call.server
        failure.late = failure.overlong and not call.is_trial and not self._standings.is_silent(server.server_id)
        if failure.suspicious and not exchange.suspected:
            at = self._suspects.suspected_at(exchange.body, time.monotonic())
            # Who hangs is found by the requests that wait there at the same time, be they all the same.
            exchange.suspected = at is not None and (failure.damaging or at <= exchange.started + INEXACT)
        if failure.suspicious and exchange.suspected:
            failure.blamed = False
        if failure.blamed:
            failure.counted = self.verdicts.failed(
                server, failure.reason, failure.evidence, since=call.started, trial=call.is_trial
            )
        else:
            self._abandon_trial(call)
        if failure.pause:
            self.verdicts.pause(server, exchange, failure)

    def _has_elsewhere(self, exchange: Exchange) -> bool:
        """Whether a request may be sent to another server: one whose answer has begun would be worked out twice."""
        may_be = not exchange.is_answered and len(exchange.record.attempts) < self._most
        return may_be and bool(self.verdicts.present(exchange.others))

    def _abandon_trial(self, call: Call[T]) -> None:
        if call.is_trial:
            self._standings.abandon_trial(call.server.server_id)

    def _patience(self, call: Call[T], model: Model) -> float:
        """Seconds that the server has for its first byte."""
        if call.is_trial:
            return self._first_byte.limit_of_trial(call.key, call.server, model)
        return self._first_byte.limit(call.key, call.server)

    def _leave(self, call: Call[T]) -> None:
        """The server has room for another."""
        call.leave()
        self._router.in_flight[call.server.server_id] -= 1
        self._router.leaves(call.key.model, call)
        if call.place:
            self._limiter.leave(call.place)
