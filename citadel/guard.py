"""Stands before everything: request id, sizes, deadlines, the shape of JSON, the last word on errors.

The body is read here, within its limits, before any view runs. A client that leaves cancels its request at once: the
protocol tells us (see `protocol.py`), nothing polls for it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import structlog

from apps.gateway.access.oauth.metadata import ENDPOINTS as FORMS
from citadel.answer import Answer, Headers, StreamAnswer, error_answer, length_of
from citadel.body import WITH_BODY, Bodies, ClientLeft, Receive, Scope, Send, headers_of, refuse
from citadel.connection import Connection
from citadel.context import choose_request_id, request_id
from citadel.cors import Cors
from citadel.errors import BadRequest, CitadelError, Crowded, Draining, TooLarge, TooSlow, UnsupportedCoding
from citadel.json_limits import SLICE, verdicts
from citadel.sections import Config

log = structlog.get_logger("citadel.guard")

NO_PAGE = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""What is answered here is for programs: a browser that shows it as a page, or in one, runs and loads nothing."""
NO_STORE = (b"cache-control", b"no-store")
"""It is for who has asked alone: no cache on the way, and no browser, keeps it."""

Count = Callable[[str, int], None]
"""Told of each request's path and of the status that it was answered with."""
Room = Callable[[Scope, dict[bytes, bytes]], float]
"""What part of the room for bodies who sends such a head may have."""
Refused = Callable[[Scope, dict[bytes, bytes], CitadelError], None]
"""Told of each error that a request is answered with, unless its view has told it already."""
View = Callable[[Scope, dict[bytes, bytes], bytes, str], Awaitable[Answer | StreamAnswer]]


class Guard:
    """An ASGI application around the data plane's views."""

    def __init__(self, view: View, config: Config, count: Count, refused: Refused, bodies: Bodies, room: Room):
        self._view = view
        self._count = count
        self._refused = refused
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._bodies = bodies
        self._depth = config.security.json_depth
        self._values = config.security.json_values
        origins = config.security.cors_origins
        self._cors = Cors(origins) if origins else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; a client that leaves cancels it."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # a coroutine that runs, runs in a task
        connection: Connection = scope["citadel.connection"]
        connection.on_client_left = task.cancel
        try:
            await self._answer(scope, connection, receive, send)
        except asyncio.CancelledError:
            if not connection.gone:  # cut where nothing more can be said
                connection.abort()
        finally:
            self._count(scope["path"], connection.status)

    async def _answer(self, scope: Scope, connection: Connection, receive: Receive, send: Send) -> None:
        headers = headers_of(scope["headers"])
        identity = choose_request_id(headers.get(b"x-request-id"))
        request_id.set(identity)
        own: Headers = [(b"x-request-id", identity.encode()), NO_PAGE, NO_STORE]
        if self._cors:
            own += self._cors.headers(headers)
        lingers = False
        try:
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                connection.respond(204, own, b"")  # which has no length (RFC 9110, 8.6)
                return
            body = await self._body(scope, headers, connection, receive) if scope["method"] in WITH_BODY else b""
            answer = await self._view(scope, headers, body, identity)
        except ClientLeft:
            return
        except CitadelError as error:
            self._refused(scope, headers, error)
            answer = error_answer(error)
            lingers = isinstance(error, (TooLarge, TooSlow, Crowded, UnsupportedCoding))
        except asyncio.CancelledError:
            if connection.gone:
                raise
            answer = error_answer(Draining())
        except Exception:  # the outermost edge: whatever it was, the client gets an error and the log the stack
            log.exception("unexpected_failure", path=scope["path"])
            answer = error_answer(CitadelError("Something went wrong here. It has been logged."))
        if isinstance(answer, StreamAnswer):
            await send_stream(answer, own, connection)
        elif lingers:
            connection.status = answer.status_code
            await refuse(answer, own, receive, send)
        else:
            send_answer(answer, own, connection)

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], connection: Connection, receive: Receive) -> bytes:
        """The whole body, within size and time, if it is a form or JSON within its limits; TooLarge before too much is
        read. Of who will be refused by the head alone a long one is not kept, and a broken one is empty.
        """
        self._bodies.check_head(headers)
        body = connection.whole_body()
        if body is None:
            body = await self._bodies.receive(receive, self._room(scope, headers))
        connection.watch()
        self._bodies.check_size(len(body))
        if scope["path"] in FORMS:
            return body  # a secret in it may look like a number that is out of range
        try:
            await self._check(body)
        except BadRequest:
            if self._room(scope, headers):
                raise
            body = b""  # as if it had come after its head: what a stranger is told doesn't turn on how it came
        return body

    async def _check(self, body: bytes) -> None:
        """BadRequest for what breaks a limit; lets others run between the parts of a large body."""
        parts = verdicts(body, depth=self._depth, values=self._values)
        if len(body) <= SLICE:
            for _ in parts:
                pass
        else:
            for _ in parts:
                await asyncio.sleep(0)


def send_answer(answer: Answer, own: Headers, connection: Connection) -> None:
    """Sends a whole answer."""
    connection.respond(answer.status_code, [*own, *answer.raw_headers, length_of(answer.content)], answer.content)


async def send_stream(answer: StreamAnswer, own: Headers, connection: Connection) -> None:
    """Sends a stream piece by piece, and comments while it is silent; cuts the connection if it ends badly.

    No more is made of it than its client takes; who takes nothing is cut off (see `taking.py`).
    """
    source = answer.source
    heart = _Heart(answer, connection)
    try:
        connection.begin([*own, *answer.raw_headers])
        async with aclosing(source.pieces()) as pieces:
            async for piece in pieces:
                if connection.is_full:
                    await connection.drain()
                heart.beat()
                connection.write(piece)
        connection.end(close=source.cut)
    finally:
        heart.stop()
        source.end()


class _Heart:
    """Sends a comment whenever a stream has been silent for too long: one timer a stream, moved on as it fires."""

    def __init__(self, answer: StreamAnswer, connection: Connection):
        self._answer = answer
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(answer.silence, self._check)

    def beat(self) -> None:
        """A piece goes out."""
        self._last = self._loop.time()

    def stop(self) -> None:
        """Nothing more may be sent."""
        self._timer.cancel()

    def _check(self) -> None:
        left = self._last + self._answer.silence - self._loop.time()
        if left <= 0:
            if not self._connection.is_full:
                self._connection.write(self._answer.keep_alive)
            self._last, left = self._loop.time(), self._answer.silence
        self._timer = self._loop.call_later(left, self._check)
