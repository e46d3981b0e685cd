"""Walks a plan: the next server when one fails, as long as nothing has reached the client."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from apps.audit.record import Entry as Record
from apps.gateway.inference.failures import Failure
from apps.gateway.metrics import attempt_ended
from apps.orchestration.fleet import Server
from apps.orchestration.health.passive import FIRST_BACKOFF, Standings
from apps.orchestration.routing.plan import Plan
from citadel.errors import BackendRefused, Unavailable

log = structlog.get_logger("citadel.attempts")

BACKOFF = 0.02
"""Seconds before a second attempt, doubled for each further one, times a random share. None after a refusal."""

T = TypeVar("T")


class Attempts:
    """Tries servers for requests, and keeps their standings."""

    def __init__(self, standings: Standings, limit: int):
        self._standings = standings
        self._limit = limit

    async def run(self, plan: Plan, record: Record, ask: Callable[[Server], Awaitable[T]], *, whole: bool = True) -> T:
        """The first answer that a server of the plan gives to `ask`: a whole one, or the beginning of a stream.

        What went before it stands in `record`. Raises the last server's Failure, BackendRefused for the client's own
        fault, Unavailable when the plan is empty or no server of it could be reached.
        """
        if not plan.order:
            raise _unavailable(plan.retry_after)
        failure: Failure | None = None
        reached = False
        for number, server in enumerate(plan.order[: self._limit]):
            if failure and not failure.refused:
                await asyncio.sleep(BACKOFF * 2**number * random.random())  # noqa: S311  # jitter, no secret
            try:
                return await self._try(server, plan, record, ask, whole)
            except Failure as error:
                failure = error.with_traceback(None)
                reached = reached or not error.refused
        if not reached:
            raise _unavailable(FIRST_BACKOFF)
        try:
            raise failure  # type: ignore[misc]  # the order wasn't empty, so a server has failed
        finally:
            failure = None  # it holds this frame, which would hold it and all it has read until the collector comes

    async def _try(
        self, server: Server, plan: Plan, record: Record, ask: Callable[[Server], Awaitable[T]], whole: bool
    ) -> T:
        name, started = server.server_id, time.monotonic()
        record.server = name
        if name == plan.trial:
            self._standings.begin_trial(name, started)
        outcome, says_nothing = "cancelled", True
        try:
            answer = await ask(server)
            outcome, says_nothing = "ok", False
            self.succeeded(server, whole=whole)
            return answer
        except BackendRefused:
            outcome, says_nothing = "refused_request", False
            self.succeeded(server)
            raise
        except Failure as failure:
            outcome, says_nothing = failure.reason, not failure.blamed
            if failure.blamed:
                self.failed(server, failure.reason, refused=failure.refused, trial=name == plan.trial)
            raise
        finally:
            if name == plan.trial and says_nothing:
                self._standings.abandon_trial(name)
            milliseconds = round((time.monotonic() - started) * 1000, 3)
            record.attempts.append({"server": name, "outcome": outcome, "ms": milliseconds})
            attempt_ended(name, record.model, outcome)

    def succeeded(self, server: Server, *, whole: bool = True) -> None:
        """Takes note of a server that answers, or has begun to."""
        take = self._standings.succeeded if whole else self._standings.begun
        if take(server.server_id):
            log.info("server_returned", server=server.server_id)

    def failed(self, server: Server, reason: str, *, refused: bool = False, trial: bool = False) -> None:
        """Takes note of a server that doesn't."""
        if self._standings.failed(server.server_id, time.monotonic(), refused=refused, trial=trial):
            log.warning("server_ejected", server=server.server_id, reason=reason)


def _unavailable(retry_after: float) -> Unavailable:
    return Unavailable("No server of this model is available.", code="no_server_available", retry_after=retry_after)
