"""Relays one stream: the least work per chunk that keeps the promises.

Until the first content everything is held back, so that a failure can still move to another server. After it the
client gets what came, byte for byte, and if that ends badly one error event and no `[DONE]`.
"""

import asyncio

import aiohttp
import msgspec

from apps.gateway.inference.http.connections import Response
from apps.gateway.inference.http.failures import Failure, error_in_answer, malformed, map_failure
from apps.gateway.inference.streams.sse import LARGEST_EVENT, ErrorEvent, Malformed, Parser, Usage, framed
from apps.gateway.limits.admission import Overspent
from apps.gateway.limits.budgets import Claim
from apps.orchestration.fleet import Server
from citadel.background import Background
from citadel.deadlines import deadline
from citadel.errors import BackendFailed, BackendTimeout, CitadelError, Draining

DRAIN = 1.0
"""Seconds that a server has to end the body of a finished stream, if its connection is to be used again."""

MOST = 64 * 1024
"""Bytes that are taken at once of what has come: the client's connection holds as much, and the server's, and one more
waits between them, while he reads slowly.
"""

_background = Background("streams")


BROKEN_OFF = "The server broke the stream off before its end."


class Interrupted(CitadelError):
    """A stream that ended before its end."""

    status = 502
    type = "upstream_error"
    default_code = "stream_interrupted"

    def __init__(self, message: str = BROKEN_OFF):
        super().__init__(message)


class Stream:
    """One server's stream, from its first byte to its last. `idle` and `limit` in seconds."""

    def __init__(self, server: Server, response: Response, parser: Parser, *, idle: float, limit: float):
        self.server = server
        self.parser = parser
        self.failure: str | None = None
        """Why it ended badly, for the record."""
        self.blamed = True
        """Whether that is the server's fault."""
        self.counted = Usage(0, 0)
        """What of it is already on record."""
        self.head = b""
        self._response = response
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        """When the wait for the server began; None while the client is slower than it."""
        self._deadline = self._loop.time() + limit
        self._is_at_end = False
        self._broken_off: str | None = None
        self._stalled: str | None = None
        self._unpaid: Claim | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def open(self, limit: float) -> None:
        """Reads up to the first content, for at most `limit` seconds; Failure or BackendRefused when none comes."""
        parser, content = self.parser, self._response.content
        try:
            async with deadline(limit):
                while not parser.has_content:
                    packet = await content.read(MOST)
                    self.head += parser.feed(packet) if packet else parser.flush()
                    self._check_opening(ended=not packet)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None
        self._watch = self._loop.call_later(self._idle, self._check)

    async def next(self) -> bytes:
        """What came next, the head first; nothing at the proper end. Interrupted when it has none, or Overspent.

        One who waits may be cancelled, and another go on.
        """
        if self.head:
            head, self.head = self.head, b""
            return head
        parser, content = self.parser, self._response.content
        while not (self._is_at_end or parser.done or parser.broken):
            if self._waiting_since is None:
                self._waiting_since = self._loop.time()
            try:
                packet = await content.read(MOST)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._broken_off, packet = map_failure(error).reason, self._response.unread()
            except asyncio.CancelledError:
                self._waiting_since = None
                raise
            self._is_at_end = not packet or self._broken_off is not None
            out = parser.feed(packet) if packet or self._broken_off else parser.flush()
            packet = b""  # which may be large, and the next one may be long in coming
            if out:
                self._waiting_since = None
                return out
        if self._unpaid and not parser.done:
            raise Overspent(self._unpaid)
        if self._broken_off and not parser.done:
            raise self._interrupted(self._stalled or self._broken_off)
        if parser.broken:
            raise self._interrupted(str(parser.broken))
        if not parser.finished:
            raise self._interrupted(self._stalled or "no finish_reason")
        return b""

    def _check_opening(self, *, ended: bool) -> None:
        """Raises what is wrong with a stream of which nothing is for the client yet.

        Content that came together with what spoils the stream is his, as if it had come alone.
        """
        if self.parser.has_content:
            return
        if isinstance(self.parser.broken, Malformed):
            raise malformed(str(self.parser.broken))
        if isinstance(self.parser.broken, ErrorEvent):
            raise error_in_answer(self.parser.broken.error, self.server)
        if ended or self.parser.done:
            raise malformed("the stream ended before any content")
        if len(self.head) > LARGEST_EVENT:
            raise malformed(f"no content in {LARGEST_EVENT} bytes")

    def close(self) -> None:
        """Lets go of the server: a finished stream's connection can be used again, any other is closed."""
        if self._watch:
            self._watch.cancel()
        if self.parser.done and not self.parser.broken:
            _background.begin(self._drain())
        else:
            self._response.close()

    def stop(self, unpaid: Claim) -> None:
        """Lets go of the server before the end, for which it is not blamed: who reads is Overspent there."""
        self._unpaid = unpaid
        self._response.close()

    async def _drain(self) -> None:
        """After `[DONE]` the end of the body is still to come."""
        try:
            async with asyncio.timeout(DRAIN):
                await self._response.content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._response.close()
        else:
            self._response.release()

    def _interrupted(self, reason: str) -> Interrupted:
        self.failure = reason
        return Interrupted()

    def _check(self) -> None:
        """One timer a stream, moved on only when it fires."""
        now = self._loop.time()
        idle_since = now if self._waiting_since is None else self._waiting_since
        left = min(idle_since + self._idle, self._deadline) - now
        if left > 0:
            self._watch = self._loop.call_later(left, self._check)
            return
        self.blamed = now < self._deadline
        self._stalled = "stalled" if self.blamed else "stream_time_limit"
        self._response.close()


def error_event(error: CitadelError) -> bytes:
    """An error in a stream whose status is already sent."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return framed(msgspec.json.encode({"error": fields}))


def as_error(failure: BaseException) -> CitadelError:
    """The client's view of whatever ended a request."""
    if isinstance(failure, CitadelError):
        return failure
    if isinstance(failure, Failure):
        return failure.error
    if isinstance(failure, asyncio.CancelledError):  # of which a client hears only where the worker ends
        return Draining()
    if isinstance(failure, TimeoutError):
        return BackendTimeout("The answer took longer than a plain answer may take.")
    return BackendFailed("The request could not be served.")
