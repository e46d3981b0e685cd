"""Where a request may go: its plan, which is made anew when servers come, go or change while it waits for a place."""

from apps.gateway.inference.attempts import Attempts
from apps.gateway.inference.exchange import Exchange
from apps.gateway.limits.waiting import Wanted
from apps.orchestration.routing.explain import told
from apps.orchestration.routing.plan import Plan


class Course:
    """The plan of a request that is not yet admitted, or has no place yet."""

    __slots__ = ("_attempts", "_exchange", "plan")

    def __init__(self, attempts: Attempts, exchange: Exchange, plan: Plan):
        self._attempts = attempts
        self._exchange = exchange
        self.plan = plan

    def wanted(self) -> Wanted | None:
        """What to ask the limiter for; None where it needs no place."""
        return self._attempts.wanted(self._exchange, self.plan.order, self._wanted_again)

    def _wanted_again(self) -> Wanted | None:
        exchange = self._exchange
        self.plan = self._attempts.plan_again(exchange)
        exchange.record.routing = told(self.plan, exchange.model)
        return self.wanted()
