"""Equal requests in flight share one call: one leads, the others of this worker follow and get what it brings.

When the leader fails or leaves, one follower takes over. What is the request's own fault, or fails a second time, is
told to all. An answer that can't be shared is nobody's to wait for: then each goes alone.
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from apps.gateway.inference.cache import Entry
from citadel.errors import BackendRefused, CitadelError

TRIES = 2
"""Leaders that may fail before the followers are told so."""


class Role(Enum):
    """What a request does whose answer nobody brings."""

    LEADS = "leads"
    ALONE = "alone"


@dataclass(slots=True)
class Flight:
    """One call under way."""

    landed: "asyncio.Future[Entry | CitadelError | Role | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    failures: int = 0


class Flights:
    """The calls under way in this worker, by the key of their cache entry."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    async def board(self, key: str) -> Entry | Role:
        """Follows the flight of `key` and gives what it brings, or what there is to do: who leads must `land`."""
        failures = 0
        while (flight := self._flights.get(key)) is not None:
            outcome = await asyncio.shield(flight.landed)
            if isinstance(outcome, CitadelError):
                try:
                    raise outcome.with_traceback(None)
                finally:
                    del flight, outcome  # the error holds this frame, which would hold it until the collector comes
            if outcome is not None:
                return outcome
            failures = flight.failures
        self._flights[key] = Flight(failures=failures)
        return Role.LEADS

    def land(self, key: str, outcome: Entry | CitadelError | Role | None) -> None:
        """The leader is back: with an answer, with an error, or with nothing because its client has left. ALONE: it has
        an answer which can't be shared.
        """
        flight = self._flights.pop(key, None)
        if flight is None or flight.landed.done():
            return
        if isinstance(outcome, CitadelError) and not isinstance(outcome, BackendRefused):
            flight.failures += 1
            outcome = outcome if flight.failures >= TRIES else None
        flight.landed.set_result(outcome)
