"""Equal requests in flight share one call: one leads, the others of this worker follow and get what it brings.

When the leader fails or leaves, one follower takes over. What is the request's own fault, or fails a second time, is
told to all.
"""

import asyncio
from dataclasses import dataclass, field

from apps.gateway.inference.cache import Entry
from citadel.errors import BackendRefused, CitadelError

TRIES = 2
"""Leaders that may fail before the followers are told so."""


@dataclass(slots=True)
class Flight:
    """One call under way."""

    landed: "asyncio.Future[Entry | CitadelError | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    failures: int = 0


class Flights:
    """The calls under way in this worker, by the key of their cache entry."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    async def board(self, key: str) -> Entry | None:
        """Follows the flight of `key` and gives what it brings; None for the one who is to lead, who must `land`."""
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
        return None

    def land(self, key: str, outcome: Entry | CitadelError | None) -> None:
        """The leader is back: with an answer, with an error, or with nothing because its client has left."""
        flight = self._flights.pop(key, None)
        if flight is None or flight.landed.done():
            return
        if isinstance(outcome, CitadelError) and not isinstance(outcome, BackendRefused):
            flight.failures += 1
            outcome = outcome if flight.failures >= TRIES else None
        flight.landed.set_result(outcome)
