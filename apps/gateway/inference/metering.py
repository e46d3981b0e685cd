"""Has requests pay for as long as servers work for them, where that has a price and a budget of money bounds it.

Nobody knows beforehand how long an answer takes. A request claims what is usual, a second at least; while it runs it
claims more, ahead of what it uses, and ends where its budget has no more. So many that run at once spend no more than
one after the other could.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from apps.gateway.inference.calls.attempts import Attempts
from apps.gateway.inference.claiming import AHEAD, Claiming
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.usage import used
from apps.gateway.limits.admission import Overspent
from apps.gateway.limits.budgets import Claim, Need, Price, Purse
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.prices import Prices
from citadel.background import Background
from citadel.errors import Unavailable

LOOK_EVERY = AHEAD / 4
"""Seconds: several looks lie between the first for which too little is claimed and the last."""

T = TypeVar("T")


class Metered:
    """One request that pays by the second, and what it `needs` beside that time."""

    __slots__ = ("exchange", "is_claiming", "needs", "purses", "task", "unpaid")

    def __init__(self, exchange: Exchange, purses: tuple[Purse, ...], needs: Need, task: "asyncio.Task[object] | None"):
        self.exchange = exchange
        self.purses = purses
        self.needs = needs
        self.task = task
        """That ends with it, as long as no stream has begun."""
        self.is_claiming = False
        self.unpaid: Claim | None = None
        """Why it was ended."""

    def missing(self, price: Price, ahead: float) -> tuple[Claim, ...]:
        """What it has yet to claim for the time until now, and so many seconds `ahead`."""
        cost = price.cost(self.needs._replace(seconds=self.exchange.seconds + ahead))
        claimed = [(purse, self.exchange.reserved.of(purse)) for purse in self.purses]
        return tuple(Claim(purse, cost - amount) for purse, amount in claimed if amount < cost)

    def stop(self, unpaid: Claim) -> None:
        """Ends the request, whose client is told why."""
        self.unpaid = unpaid
        if self.exchange.source:
            self.exchange.source.stop(unpaid)
        elif self.task:
            self.task.cancel()


class Meter:
    """Looks after the requests of this worker that pay by the second."""

    def __init__(self, limiter: Limiter, prices: Prices, claiming: Claiming, attempts: Attempts):
        self._attempts = attempts
        self._limiter = limiter
        self._prices = prices
        self._claiming = claiming
        self._metered: dict[Exchange, Metered] = {}
        self._background = Background("meter")
        self._is_looking = False

    def run(self, exchange: Exchange, work: Awaitable[T]) -> Awaitable[T]:
        """What servers do for a request, up to the beginning of a stream; Overspent where its budget ends before.

        It goes on to pay until `end`.
        """
        bounds = self._bounds(exchange)
        return self._run(exchange, bounds, work) if bounds else work

    def pass_on(self, exchange: Exchange, heir: Exchange) -> None:
        """Another goes on with a call that has begun to answer, and pays the rest."""
        metered, done = self._metered.pop(exchange, None), used(exchange)
        if bounds := self._bounds(heir):
            needs = metered.needs if metered else self._claiming.need(heir)
            left = Need(max(0, needs.prompt - done.prompt), max(0, needs.answers - done.answers))
            self._begin(heir, bounds, left)

    def end(self, exchange: Exchange) -> None:
        """No server works for the request any more."""
        self._metered.pop(exchange, None)

    def _bounds(self, exchange: Exchange) -> tuple[Purse, ...]:
        """What may be paid for a request's time; nothing where it costs none, or nobody bounds that."""
        if not exchange.caller.budgets or not self._prices.of(exchange.model.name).server_second:
            return ()
        return tuple(purse for purse in exchange.purses if purse.unit == "money")

    async def _run(self, exchange: Exchange, bounds: tuple[Purse, ...], work: Awaitable[T]) -> T:
        needs, record = self._claiming.need(exchange), exchange.record
        needs = Need(needs.prompt + record.prompt_tokens, needs.answers + record.completion_tokens)
        metered = self._begin(exchange, bounds, needs, asyncio.current_task())
        try:
            return await work
        except asyncio.CancelledError:
            # As asyncio.timeout does it: if that was the only wish to cancel the task, it is ours to take back.
            if metered.unpaid and metered.task and metered.task.uncancel() == 0:
                raise Overspent(metered.unpaid) from None
            raise

    def _begin(
        self,
        exchange: Exchange,
        bounds: tuple[Purse, ...],
        needs: Need,
        task: "asyncio.Task[object] | None" = None,
    ) -> Metered:
        metered = self._metered[exchange] = Metered(exchange, bounds, needs, task)
        if not self._is_looking:
            self._is_looking = True
            self._background.begin(self._look_on())
        return metered

    async def _look_on(self) -> None:
        """Looks as long as there is any."""
        try:
            while self._metered:
                await asyncio.sleep(LOOK_EVERY)
                for metered in self._metered.values():
                    if not metered.is_claiming and metered.missing(self._price(metered), AHEAD / 2):
                        metered.is_claiming = True
                        self._background.begin(self._claim(metered))
        finally:
            self._is_looking = False

    async def _claim(self, metered: Metered) -> None:
        """Claims more; one that gets nothing runs as long as what it has claimed before is enough for."""
        exchange = metered.exchange
        try:
            missing = metered.missing(self._price(metered), AHEAD)
            question = await self._limiter.claim(missing, [exchange.reserved.of(claim.purse) for claim in missing])
        except Overspent as refusal:
            if metered is self._metered.get(exchange) and metered.missing(self._price(metered), LOOK_EVERY):
                self.end(exchange)
                metered.stop(refusal.claim)
                self._attempts.ended(exchange)  # whose client may be long in hearing of it
        except Unavailable:
            pass  # what was let in goes on while nobody knows what is left
        else:
            if metered is self._metered.get(exchange):
                exchange.reserved = exchange.reserved.grown(question)
            else:
                self._limiter.settle(question, 0)
        finally:
            metered.is_claiming = False

    def _price(self, metered: Metered) -> Price:
        return self._prices.of(metered.exchange.model.name)
