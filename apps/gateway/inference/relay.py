"""A stream on its way to the client, and what is told of it at its end."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from apps.gateway.inference.doors import CHAT
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.failures import Failure
from apps.gateway.inference.sse import DONE, Parser
from apps.gateway.inference.stream import Stream, as_error, error_event
from apps.gateway.inference.usage import estimated, usage_event
from citadel.errors import CitadelError

if TYPE_CHECKING:  # it makes the relays
    from apps.gateway.inference.pipeline import Pipeline


class Relay:
    """A stream's pieces on their way to the client, kept for the cache where that is wanted."""

    def __init__(self, pipeline: "Pipeline", exchange: Exchange, opening: "asyncio.Task[Stream]"):
        self.cut = False
        self._pipeline = pipeline
        self._exchange = exchange
        self._opening = opening
        self._stream: Stream | None = None
        self._error: BaseException | None = None
        self._sent = 0

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The stream as the client gets it; its bad end is the last piece."""
        try:
            stream = self._stream = await self._opening
            collected: list[bytes] | None = [] if self._exchange.key else None
            self._sent += len(stream.head)
            if collected is not None:
                collected.append(stream.head)
            yield stream.head
            async for piece in stream.rest():
                self._sent += len(piece)
                if collected is not None:
                    collected.append(piece)
                yield piece
            if collected is not None:
                self._pipeline.keep_stream(self._exchange, stream, b"".join(collected))
            self._pipeline.free(self._exchange)
            tail = self._tail(stream)
            self._sent += len(tail)
            yield tail
        except (CitadelError, Failure) as error:
            self._error = error.with_traceback(None)  # which would hold this frame, and so itself
            self.cut = True
            self._pipeline.free(self._exchange)
            event = error_event(as_error(error))
            self._sent += len(event)
            yield event

    def _tail(self, stream: Stream) -> bytes:
        """The proper end, after the usage that the client asked for, where its server doesn't tell it."""
        exchange = self._exchange
        if not exchange.wants_usage or stream.parser.usage:
            return DONE
        return estimate(exchange, stream.parser) + DONE

    def end(self) -> None:
        """Lets go of the server and settles."""
        if self._stream:
            self._stream.close()
        else:
            self._stream = give_up(self._opening)
        self._pipeline.stream_ended(self._exchange, self._stream, self._sent, self._error)


def give_up(opening: "asyncio.Task[Stream]") -> Stream | None:
    """Ends what nobody waits for; a stream that has opened all the same is closed, and given."""
    if opening.cancel() or opening.cancelled() or opening.exception():
        return None
    stream = opening.result()
    stream.close()
    return stream


def estimate(exchange: Exchange, parser: Parser) -> bytes:
    """The event that tells the usage of a stream whose server told none."""
    kind = "chat.completion.chunk" if exchange.door is CHAT else "text_completion"
    usage = estimated(exchange.body, parser.content_chunks)
    return usage_event(usage, kind, exchange.model.name, exchange.record.request_id)
