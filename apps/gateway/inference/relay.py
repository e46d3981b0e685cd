"""A stream on its way to the client, and what is told of it at its end."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from apps.gateway.inference.doors import CHAT
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.failures import Failure
from apps.gateway.inference.sse import DONE
from apps.gateway.inference.stream import Stream, as_error, error_event
from apps.gateway.inference.usage import estimated, usage_event
from citadel.errors import CitadelError

if TYPE_CHECKING:  # it makes the relays
    from apps.gateway.inference.pipeline import Pipeline


class Relay:
    """A stream's pieces on their way to the client, kept for the cache where that is wanted."""

    def __init__(self, pipeline: "Pipeline", exchange: Exchange, opening: "asyncio.Task[bytes | Stream]"):
        self.cut = False
        self._pipeline = pipeline
        self._exchange = exchange
        self._opening = opening
        self._stream: Stream | None = None
        self._error: CitadelError | None = None
        self._sent = 0
        self._collected: list[bytes] | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The stream as the client gets it; its bad end is the last piece."""
        try:
            found = await self._opening
            if isinstance(found, bytes):
                self._pipeline.free(self._exchange)
                self._sent += len(found)
                yield found
                self._pipeline.entry_sent(self._exchange, self._sent)
                return
            stream = self._stream = found
            self._collected = [] if self._exchange.key else None
            self._take(stream.head)
            yield stream.head
            async for piece in stream.rest():
                self._take(piece)
                yield piece
            if self._collected is not None:
                self._pipeline.keep_stream(self._exchange, stream, b"".join(self._collected))
            self._pipeline.free(self._exchange)
            tail = self._tail(stream)
            self._sent += len(tail)
            yield tail
        except (CitadelError, Failure, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not self._pipeline.is_cut:
                raise
            self._error = as_error(error).with_traceback(None)  # which would hold this frame, and so itself
            self.cut = True
            self._pipeline.free(self._exchange)
            event = error_event(self._error)
            self._sent += len(event)
            yield event

    def _take(self, piece: bytes) -> None:
        """Counts a piece, and collects it while the whole may still be worth keeping."""
        self._sent += len(piece)
        if self._collected is not None:
            self._collected.append(piece)
            if self._sent > self._pipeline.largest_entry:
                self._collected = None
                self._pipeline.keep_nothing(self._exchange)

    def _tail(self, stream: Stream) -> bytes:
        """The proper end, after the usage that the client asked for, where its server doesn't tell it."""
        exchange = self._exchange
        if not exchange.wants_usage or stream.parser.usage:
            return DONE
        return estimate(exchange, stream.parser.content_chunks) + DONE

    def end(self) -> None:
        """Lets go of the server and settles."""
        if self._stream:
            self._stream.close()
        else:
            self._stream = give_up(self._opening)
        self._pipeline.stream_ended(self._exchange, self._stream, self._sent, self._error)


def give_up(opening: "asyncio.Task[bytes | Stream]") -> Stream | None:
    """Ends what nobody waits for; a stream that has opened all the same is closed, and given."""
    if opening.cancel() or opening.cancelled() or opening.exception():
        return None
    found = opening.result()
    if isinstance(found, bytes):
        return None
    found.close()
    return found


def estimate(exchange: Exchange, tokens: int) -> bytes:
    """The event that tells the usage of an answer of about so many tokens whose server told none."""
    kind = "chat.completion.chunk" if exchange.door is CHAT else "text_completion"
    usage = estimated(exchange.body, tokens)
    return usage_event(usage, kind, exchange.model.name, exchange.record.request_id)
