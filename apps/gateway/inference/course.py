"""Where a request may go: its plan, which is made anew when servers come, go or change while it waits for a place."""

import asyncio
import time

from apps.gateway.inference.calls.attempts import Attempts
from apps.gateway.inference.calls.placing import Placing
from apps.gateway.inference.claiming import Claiming
from apps.gateway.inference.exchange import Exchange
from apps.gateway.limits.limiter import Limiter
from apps.gateway.limits.waiting import Wanted
from apps.gateway.workloads import Workloads, with_first
from apps.orchestration.routing.explain import told
from apps.orchestration.routing.plan import Plan
from apps.orchestration.routing.router import Router


class Course:
    """The plan of a request that is not yet admitted, or has no place yet."""

    __slots__ = ("_exchange", "_placing", "plan")

    def __init__(self, placing: Placing, exchange: Exchange, plan: Plan):
        self._placing = placing
        self._exchange = exchange
        self.plan = plan

    def wanted(self) -> Wanted | None:
        """What to ask the limiter for; None where it needs no place."""
        return self._placing.wanted(self._exchange, self.plan.order, self._wanted_again)

    def _wanted_again(self) -> Wanted | None:
        exchange = self._exchange
        self.plan = self._placing.plan_again(exchange)
        exchange.record.routing = told(self.plan, exchange.model)
        return self.wanted()


class Courses:
    """Lets requests in: planned, counted against the limits of their keys, with a place where servers have limits."""

    def __init__(
        self,
        router: Router,
        limiter: Limiter,
        claiming: Claiming,
        attempts: Attempts,
        workloads: Workloads,
    ):
        self._router = router
        self._limiter = limiter
        self._claiming = claiming
        self._attempts = attempts
        self._workloads = workloads

    async def admit(self, exchange: Exchange) -> Plan:
        """Plans the request and lets it in; where servers have limits, it has a place on one of them then."""
        plan = self._router.plan(exchange.model, exchange.needs)
        exchange.record.routing = told(plan, exchange.model)
        if exchange.workload:
            return await self._admit_workload(exchange, plan)
        course = Course(self._attempts.placing, exchange, plan)
        wanted = course.wanted()
        begun = time.monotonic()
        await self._let_in(exchange, wanted)
        if wanted:
            exchange.queued_ms = 1000 * (time.monotonic() - begun)
        return course.plan

    async def _let_in(self, exchange: Exchange, wanted: Wanted | None = None) -> None:
        """Counts a request against all its limits, with a place where it is to have one."""
        self._give_up_inherited(exchange)
        caller, model, need = exchange.caller, exchange.model, self._claiming.need(exchange)
        claimed = self._claiming.claims(exchange, need)
        nonce, exchange.nonce = exchange.nonce, None
        admission = await self._limiter.admit(
            caller, model, wanted, tokens=need.tokens, claims=claimed, nonce=nonce, workload=exchange.workload
        )
        exchange.admission, exchange.place = admission, admission.place
        if admission.question.tokens or claimed:
            exchange.reserved = exchange.reserved.also(admission.question)

    def _give_up_inherited(self, exchange: Exchange) -> None:
        """What a request still holds of one whose call it was to go on with, and can't: it makes its own. What it has
        used of budgets stays claimed until that is charged.
        """
        if exchange.admission:
            self._limiter.release(exchange.admission)
            exchange.admission = None
        if exchange.reserved.questions:
            _, charges = self._claiming.used(exchange)
            exchange.reserved, needed_no_more = exchange.reserved.parted(charges, lambda _: True)
            for question in needed_no_more.questions:
                self._limiter.settle(question, exchange.tokens)
            exchange.settled_tokens += exchange.tokens

    async def _admit_workload(self, exchange: Exchange, plan: Plan) -> Plan:
        """Lets a request in for which a place is held: it takes that over and goes there first.

        Where nothing is held for it, or on a server that is not in the plan, it is a request as any other.
        """
        try:
            await self._let_in(exchange)
        except asyncio.CancelledError:  # as it is when he leaves a moment later
            self._workloads.give_up(exchange.workload, exchange.caller, exchange.model)
            raise
        workload = await self._workloads.use(exchange.workload, exchange.caller, exchange.model)
        exchange.workload = b""
        if workload is None:
            return await self._find_place(exchange, plan)
        exchange.priority = max(exchange.priority, workload.priority)
        exchange.place, order = workload.place, with_first(plan.order, [workload.server])
        if not order or order[0].server_id != workload.server:
            self._attempts.ended(exchange)
            return await self._find_place(exchange, plan)
        exchange.record.routing = {**(exchange.record.routing or {}), "workload": workload.request_id}
        return plan._replace(order=order, trial=None)

    async def _find_place(self, exchange: Exchange, plan: Plan) -> Plan:
        """A place for a request that was admitted without one."""
        course = Course(self._attempts.placing, exchange, plan)
        if wanted := course.wanted():
            exchange.place = await self._attempts.placing.find_place(wanted, exchange)
        return course.plan
