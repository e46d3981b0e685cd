"""What a request may take out of limits and budgets at most, before anybody knows what it will use."""

from collections.abc import Sequence

from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.usage import most_needed, used
from apps.gateway.limits.budgets import FREE, Claim, Need, claims
from apps.gateway.limits.prices import Prices
from apps.orchestration.routing.router import Router

AHEAD = 1.0
"""Seconds of a server's time that a request claims at least: as it runs it claims more, ahead of what it uses."""


class Claiming:
    """Knows how long answers and their work usually are, and what they cost."""

    def __init__(self, router: Router, prices: Prices, usual_answer: int):
        self._router = router
        self._prices = prices
        self._usual_answer = usual_answer

    def need(self, exchange: Exchange) -> Need:
        """What a request may need."""
        seconds = max(AHEAD, self._router.usual_hold(exchange.model.name))
        return most_needed(exchange.request, exchange.body, self._usual_answer, seconds)

    def claims(self, exchange: Exchange, need: Need) -> Sequence[Claim]:
        """What a request that may need so much claims of its caller's budgets."""
        if not exchange.caller.budgets:
            return ()
        cost = self._prices.of(exchange.model.name).cost(need)
        return claims(exchange.purses, need, cost)

    def used(self, exchange: Exchange) -> tuple[int, Sequence[Claim]]:
        """What a request has cost up to now, in billionths, and what of it is to be taken out of which purse."""
        price = self._prices.of(exchange.model.name)
        if price is FREE and not exchange.caller.budgets:
            return 0, ()
        need = used(exchange)
        cost = price.cost(need)
        return cost, claims(exchange.purses, need, cost)

    def claims_beside(self, exchange: Exchange, owner: Exchange) -> Sequence[Claim]:
        """What a request claims that reads another's call along, and goes on with it should its client leave: of those
        budgets of which nothing is claimed for that call yet.
        """
        unclaimed = exchange.unclaimed(owner)
        if not unclaimed:
            return ()
        need = self.need(exchange)
        return claims(unclaimed, need, self._prices.of(exchange.model.name).cost(need))
