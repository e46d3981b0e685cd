"""Equal requests in flight share one call: one leads, the others of this worker follow and get what it brings.

When the leader fails or leaves, one follower takes over. What is the request's own fault, or fails a second time, is
told to all. An answer that can't be shared is nobody's to wait for: then each goes alone. Of a stream that has begun
the followers who want a stream read along; the others wait for its end.
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from apps.gateway.inference.caching.cache import Entry
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.streams.shared import Reader, Shared
from citadel.errors import BackendRefused, CitadelError

TRIES = 2
"""Leaders that may fail before the followers are told so."""


class Role(Enum):
    """What a request does whose answer nobody brings."""

    LEADS = "leads"
    ALONE = "alone"


Outcome = Entry | CitadelError | Role | None


def _news() -> "asyncio.Future[Outcome]":
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True)
class Flight:
    """One call under way."""

    landed: "asyncio.Future[Outcome]" = field(default_factory=_news)
    begun: Shared | None = None
    """The stream that it brings."""
    failures: int = 0


class Flights:
    """The calls under way in this worker, by the key of their cache entry."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    async def board(self, key: str, exchange: Exchange) -> Entry | Reader | Role:
        """Follows the flight of `key` and gives what it brings, or what there is to do: who leads must `land`."""
        failures = 0
        while (flight := self._flights.get(key)) is not None:
            outcome: Outcome = None
            if flight.begun is None:
                outcome = await asyncio.shield(flight.landed)
            if flight.begun is not None:
                if flight.begun.is_open:
                    reader = flight.begun.join(exchange)
                    if exchange.streams:
                        return reader
                    await reader.read_to_end()
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

    def begin(self, key: str, stream: Shared) -> None:
        """The leader has a stream, which others may read along; how it ends is still to come."""
        if flight := self._flights.get(key):
            waited_for, flight.landed, flight.begun = flight.landed, _news(), stream
            waited_for.set_result(None)

    def land(self, key: str, outcome: Outcome) -> None:
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
