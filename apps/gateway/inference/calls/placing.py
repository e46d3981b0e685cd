"""Which server of its plan a request goes to next, and a place there where that has a limit."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from apps.gateway.inference.exchange import Exchange
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import NoPlace, Place, Wanted
from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router
from citadel.sections import RoutingSection

WITHOUT_WAITING = 0.0
"""How patient backup requests and trials are where a server has no place for them."""
MODEL_BACK_IN = 30.0
"""Seconds after which to ask again for a model that has gone."""


class NoneLeft(Exception):
    """While a request waited for a place, the last server went that it might have gone to."""


class Placing:
    """Finds places for requests that have tried some servers, or none yet."""

    def __init__(self, router: Router, watch: Watch, limiter: Limiter, routing: RoutingSection):
        self._router = router
        self._watch = watch
        self._limiter = limiter
        self._routing = routing
        self._models: Mapping[str, Model] = {}

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self._models = fleet.models

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

    async def begin_trial(self, server: Server, exchange: Exchange, *, lonely: bool) -> tuple[bool, Place | None]:
        """Whether it is this request's turn to try a server that is out, with a place there where that has a limit."""
        place = None
        if wanted := self.wanted(exchange, [server], patience=WITHOUT_WAITING):
            try:
                place = await self._limiter.find_place(wanted)
            except NoPlace:
                return False, None
        turn = False
        try:
            turn = await self._watch.take_trial(server.server_id, lonely=lonely)
        finally:
            if place and not turn:
                self._limiter.leave(place)
        return turn, place if turn else None

    async def find_place(self, wanted: Wanted, exchange: Exchange) -> Place | None:
        """A place for a request that was admitted without one, or has tried a server; how long it waits adds up.

        Raises NoPlace. None where it needs none any more, or there is no server left.
        """
        begun = time.monotonic()
        place = await self._limiter.find_place(wanted)
        exchange.queued_ms = (exchange.queued_ms or 0.0) + 1000 * (time.monotonic() - begun)
        return place

    def take_at_once(self, remaining: list[Server], exchange: Exchange) -> tuple[Server | None, Place | None]:
        """Takes the server on which the request has a place, or the next if that has no limit; None where a place must
        be asked for.
        """
        place = exchange.place
        if place is None:
            if remaining and not remaining[0].max_concurrent:
                return remaining.pop(0), None
            return None, None
        exchange.place = None
        return self._take(place, remaining), place

    async def take_next(
        self, remaining: list[Server], exchange: Exchange, *, patience: float | None = None
    ) -> tuple[Server, Place | None]:
        """Takes the next server out of those that remain, for a request without a place, which it gets there where the
        server has a limit; NoPlace.

        While it waits for one, others may remain; NoneLeft when there are none any more.
        """
        wanted = self._still_wanted(exchange, remaining, patience)
        place = await self.find_place(wanted, exchange) if wanted else None
        if place is None:
            if not remaining:
                raise NoneLeft
            return remaining.pop(0), None
        return self._take(place, remaining), place

    @staticmethod
    def _take(place: Place, remaining: list[Server]) -> Server:
        for number, server in enumerate(remaining):
            if server.server_id == place.server:
                return remaining.pop(number)
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
