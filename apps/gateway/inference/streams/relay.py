"""A stream on its way to the client, and what is told of it at its end."""

import asyncio
from collections.abc import AsyncGenerator

from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import Failure
from apps.gateway.inference.settlement import Settlement
from apps.gateway.inference.streams.shared import Reader
from apps.gateway.inference.streams.sse import DONE
from apps.gateway.inference.streams.stream import Stream, as_error, error_event
from apps.gateway.inference.usage import untold_usage
from citadel.errors import CitadelError


class Relay:
    """A stream's pieces on their way to one client."""

    def __init__(self, settlement: Settlement, exchange: Exchange, opening: "asyncio.Task[bytes | Stream | Reader]"):
        self.cut = False
        self._settlement = settlement
        self._exchange = exchange
        self._opening = opening
        self._source: Stream | Reader | None = None
        self._error: CitadelError | None = None
        self._sent = 0

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The stream as the client gets it; its bad end is the last piece."""
        try:
            found = await self._opening
            if isinstance(found, bytes):
                self._settlement.free(self._exchange)
                self._sent += len(found)
                yield found
                self._settlement.answered(self._exchange, self._sent)
                return
            source = self._source = found
            while piece := await source.next():
                self._sent += len(piece)
                yield piece
            self._settlement.free(self._exchange)
            tail = self._tail(source)
            self._sent += len(tail)
            yield tail
        except (CitadelError, Failure, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self._settlement.is_cut:
                raise
            # Their tracebacks would hold this frame, and so themselves.
            self._error = as_error(error.with_traceback(None)).with_traceback(None)
            self.cut = True
            if self._source:
                self._source.close()  # who reads on takes over what is freed else
            self._settlement.free(self._exchange)
            event = error_event(self._error)
            self._sent += len(event)
            yield event

    def _tail(self, source: Stream | Reader) -> bytes:
        """The proper end, after the usage that the client asked for, where that was not told before."""
        parser = source.stream.parser if isinstance(source, Reader) else source.parser
        return untold_usage(self._exchange, parser) + DONE if self._exchange.wants_usage else DONE

    def end(self) -> None:
        """Lets go of the server and settles."""
        if self._source:
            self._source.close()
        else:
            self._source = give_up(self._opening)
        self._settlement.relay_ended(self._exchange, self._source, self._sent, self._error)


def give_up(opening: "asyncio.Task[bytes | Stream | Reader]") -> Stream | Reader | None:
    """Ends what nobody waits for; a stream that has opened all the same is closed, and given."""
    if opening.cancel() or opening.cancelled() or opening.exception():
        return None
    found = opening.result()
    if isinstance(found, bytes):
        return None
    found.close()
    return found
