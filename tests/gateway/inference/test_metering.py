"""What the meter leaves behind of a request that it has ended."""

import asyncio
import gc
import weakref
from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from apps.gateway.inference.claiming import AHEAD
from apps.gateway.inference.metering import Meter
from apps.gateway.inference.reserved import NOTHING
from apps.gateway.limits.admission import Overspent
from apps.gateway.limits.budgets import Claim, Need, Price, purses
from citadel.caller import Budget

BUDGETS = (Budget(1, "key", "total", None, 10),)
[PURSE] = purses(BUDGETS, date(2026, 1, 1))


class Running:
    """A request whose servers have worked for longer than it has claimed."""

    def __init__(self) -> None:
        self.source = None
        self.seconds, self.reserved = 5 * AHEAD, NOTHING
        self.model, self.caller = SimpleNamespace(name="m"), SimpleNamespace(budgets=BUDGETS)
        self.purses = (PURSE,)
        self.record = SimpleNamespace(prompt_tokens=0, completion_tokens=0)


@pytest.fixture
def meter() -> Meter:
    """Of a worker whose budgets are empty."""

    async def refuse(*_: object) -> None:
        raise Overspent(Claim(PURSE, 1))

    limiter: Any = SimpleNamespace(claim=refuse)
    prices: Any = SimpleNamespace(of=lambda _: Price(server_second=1))
    claiming: Any = SimpleNamespace(need=lambda _: Need(1, 1, AHEAD))
    attempts: Any = SimpleNamespace(ended=lambda _: None)
    return Meter(limiter, prices, claiming, attempts)


async def test_a_request_that_is_ended_is_gone_with_all_that_it_held(meter: Meter) -> None:
    """Without waiting for Python's collector: it holds a body of megabytes perhaps."""

    async def ask(running: Any) -> str:
        try:
            await meter.run(running, asyncio.sleep(60))
        except Overspent as error:
            return error.code
        return "answered"

    gc.collect()
    gc.disable()
    try:
        running = Running()
        known = weakref.ref(running)
        asking = asyncio.create_task(ask(running))
        del running
        assert await asking == "budget_exceeded"
        del asking
        await asyncio.sleep(AHEAD)  # its last look has ended
        assert known() is None
    finally:
        gc.enable()
