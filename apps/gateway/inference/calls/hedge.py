"""A backup request to a second server while the first one keeps silent: the first answer wins, the other is let go."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from statistics import median_low
from typing import Any, Protocol, TypeVar, runtime_checkable

from apps.gateway.inference.http.words import PAST_CONTEXT
from apps.gateway.limits.allowance import Allowance
from apps.orchestration.fleet import Model
from apps.orchestration.health.pace import Key, Paces
from citadel.errors import BackendRefused

T = TypeVar("T")

KEPT_BACK = 1.0
"""Backup requests that are left for answers that are twice as late: nearly all others come soon without one."""
P95_KEPT = 1.0
"""Seconds."""
SOONEST = 0.02
"""Seconds before which none is made for a p95: where all answers come within milliseconds, a twentieth of them would
use up the budget for nothing to be won, and those that are late indeed would have none.
"""


@runtime_checkable
class Closable(Protocol):
    """An answer that holds a connection, as a stream does."""

    def close(self) -> None:
        """Lets go of it."""


class Backups:
    """When to begin one, and for how many requests: of each class for a share of its own.

    What one class does not use is not for others: they would have many just when all of their servers are slow.
    """

    def __init__(self, paces: Paces, allowance: Allowance):
        self._paces = paces
        self._allowance = allowance
        self._p95s: dict[tuple[str, bool], tuple[float, float | None]] = {}
        """Of each model, and until when that is believed."""

    def earn(self, model: Model) -> None:
        """A request has begun."""
        if model.model_class is not None and model.model_class.hedge_ms is not None:
            self._allowance.earn(_purpose(model))

    async def allowed(self, model: Model, late: bool) -> bool:
        """Whether one more may be made, which counts as made unless it is given back; `late`: it has been refused
        before, and an answer is still not there.
        """
        return await self._allowance.spend(_purpose(model), beyond=0.0 if late else KEPT_BACK)

    def give_back(self, model: Model) -> None:
        """One was not made after all."""
        self._allowance.give_back(_purpose(model))

    def forget(self) -> None:
        """Takes a new snapshot of the fleet."""
        self._p95s.clear()

    def after(self, model: Model, streams: bool) -> float | None:
        """Seconds after which a second server is asked too; None: never."""
        model_class = model.model_class
        if model_class is None or model_class.hedge_ms is None or not self._allowance.share:
            return None
        if model_class.hedge_ms:
            return model_class.hedge_ms / 1000
        p95 = self._p95(model, streams)
        return None if p95 is None else max(p95, SOONEST)

    def _p95(self, model: Model, streams: bool) -> float | None:
        """Seconds in which the usual server of a model gives 95 % of its answers, however slow another is."""
        now, key = time.monotonic(), (model.name, streams)
        known = self._p95s.get(key)
        if known is None or now >= known[0]:
            paces = [self._paces.find(Key(model.name, server.server_id, streams)) for server in model.servers]
            p95s = [p95 for pace in paces if pace and (p95 := pace.quantile(0.95)) is not None]
            known = self._p95s[key] = (now + P95_KEPT, median_low(p95s) if p95s else None)
        return known[1]


def _purpose(model: Model) -> str:
    return f"backups {model.model_class.name if model.model_class else ''}"


async def first_of_two(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T]],
    after: float,
    allowed: Callable[[bool], Awaitable[bool]],
    give_back: Callable[[], object],
    throw_away: Callable[[T], object],
) -> T:
    """What `first` gives, or `second`, which is begun when there is no answer `after` seconds and it is `allowed`, or
    after as many seconds again, when it is late.

    A failure is raised when both have failed, that of the first; at once where a second was not begun. Cancelled, both
    are. An answer that comes all the same is thrown away; a permission that comes as late is given back. What is
    refused is refused at once, unless it is too long for the one and may not be for the other.
    """
    tasks = [asyncio.create_task(first)]
    permission: asyncio.Task[bool] | None = None
    try:
        await asyncio.wait(tasks, timeout=after)
        if not tasks[0].done():
            permission = asyncio.create_task(_permission(after, allowed))
            await asyncio.wait((tasks[0], permission), return_when=asyncio.FIRST_COMPLETED)
            if permission.done() and permission.result():
                if tasks[0].done():
                    give_back()
                else:
                    tasks.append(asyncio.create_task(second()))
        return await _first_good(tasks)
    finally:
        if permission:
            permission.cancel()
        for task in tasks:
            _let_go(task, throw_away)


async def _permission(after: float, allowed: Callable[[bool], Awaitable[bool]]) -> bool:
    """Whether a second one may be begun: now, or else when the first is late."""
    if await allowed(False):
        return True
    await asyncio.sleep(after)
    return await allowed(True)


async def _first_good(tasks: list["asyncio.Task[T]"]) -> T:
    waiting = set(tasks)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.cancelled() and task.exception() is None:
                tasks.remove(task)  # what is left is let go
                return task.result()
            if task in done and not task.cancelled() and _by_all_alike(task.exception()):
                return task.result()
        if not waiting:
            return tasks[0].result()


def _by_all_alike(error: BaseException | None) -> bool:
    """Whether a request is refused that any other server would refuse too: one with a longer context may not."""
    return isinstance(error, BackendRefused) and error.code != PAST_CONTEXT


def _let_go(task: "asyncio.Task[T]", throw_away: Callable[[T], object]) -> None:
    """Ends a call that nobody waits for."""
    if task.done():
        if not task.cancelled() and task.exception() is None:
            throw_away(task.result())
    else:
        task.cancel()
        task.add_done_callback(partial(_let_go, throw_away=throw_away))
