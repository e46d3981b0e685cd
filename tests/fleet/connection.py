"""One connection: reads requests, performs the steps of answers, notices when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import select
import signal
import socket
import struct
import termios
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, unquote

import httptools

from .answer import Answer, Cut, Send, Step
from .record import Ending, Exchange, Record, Visit
from .request import Request
from .script import is_plain, script, whole

BODY_MAX = 33_554_432  # bytes of one request; more is answered by 413
PIPELINE_MAX = 64  # requests that one connection may have waiting
AT_ONCE = 65_536  # bytes; a plain answer up to this size is written without waiting for the client to take it
LOOK_EVERY = 0.001  # seconds between looks at a queue that is being emptied
WATCH_EVERY = 0.02  # seconds between looks at a connection that is not read
DELIVERY_LIMIT = 1.0  # seconds that a reset waits for the client's kernel to take what was sent

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: closing sends RST, socket(7)


class Site(Protocol):
    """Whom a connection asks."""

    record: Record
    connections: set[Connection]

    def is_deaf(self) -> bool:
        """Whether this new connection is never read."""

    def reply(self, request: Request, exchange: Exchange) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer to a request."""

    def turn(self, request: Request) -> contextlib.AbstractAsyncContextManager[None]:
        """The right to work, held as long as the answer lasts."""


class Connection(asyncio.Protocol):
    """The server's side of one TCP connection."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._record = site.record
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._visit: Visit
        self._waiting: deque[tuple[Request, Exchange]] = deque()
        self._exchange: Exchange | None = None  # the one being read
        self._current: Exchange | None = None  # the one being answered
        self._task: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._thawed: asyncio.Event | None = None
        self._deaf = False
        self._over = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; a deaf connection is not read."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, with the same methods
        peer = transport.get_extra_info("peername") or ("", 0)
        self._visit = self._record.connected(f"{peer[0]}:{peer[1]}")
        self._site.connections.add(self)
        self._deaf = self._site.is_deaf()
        if self._deaf:
            # Not now: uvloop begins to read after this call, whatever was said in it.
            asyncio.get_running_loop().call_soon(self._stop_reading)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._over or self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("protocol upgrades are not offered here")
        except httptools.HttpParserError as error:
            self._refuse(f"this is no HTTP request: {error}")

    def eof_received(self) -> None:
        """The client has closed its side: it has left."""
        self._left()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._left()
        if self._watcher is not None:
            self._watcher.cancel()
        self._site.connections.discard(self)

    # What the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is read."""
        path, _, query = self._url.decode("latin-1").partition("?")
        self._request = Request(
            method=self._parser.get_method().decode(),
            path=unquote(path) if "%" in path else path,
            query=dict(parse_qsl(query)) if query else {},
            headers=self._headers,
            version=self._parser.get_http_version(),
            keep_alive=self._parser.should_keep_alive(),
        )
        self._exchange = self._record.begun(self._visit, self._request.method, self._request.path, self._headers)
        if self._headers.get("expect", "").lower() == "100-continue" and self._task is None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._body_size += len(data)
        if self._body_size <= BODY_MAX:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is read."""
        self._request.body = b"".join(self._body)
        self._request.too_large = self._body_size > BODY_MAX
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        self._record.read(exchange, self._request.body, self._body_size)
        self._waiting.append((self._request, exchange))
        self._work()

    # The work

    def freeze(self) -> None:
        """Neither read nor write from now on."""
        if self._thawed is None:
            self._thawed = asyncio.Event()
            self._stop_reading()

    def thaw(self) -> None:
        """Go on."""
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None
            if self._watcher is not None:
                self._watcher.cancel()
                self._watcher = None
            self._transport.resume_reading()

    def close(self) -> None:
        """Close now, whatever is going on."""
        self._end("killed" if self._current else "server_closed")
        self._transport.close()

    def _work(self) -> None:
        """Answer the requests that wait, one after the other."""
        if len(self._waiting) > PIPELINE_MAX:
            self.close()
        while self._waiting and self._task is None and not self._over:
            request, exchange = self._waiting.popleft()
            self._current = exchange
            self._record.working(exchange)
            reply = self._site.reply(request, exchange)
            if isinstance(reply, Answer) and self._thawed is None and is_plain(reply) and len(reply.body) < AT_ONCE:
                self._answer_at_once(request, exchange, reply)
            else:
                self._task = asyncio.get_running_loop().create_task(self._answer(request, exchange, reply))
                self._task.add_done_callback(self._answered)

    def _answer_at_once(self, request: Request, exchange: Exchange, answer: Answer) -> None:
        data = whole(answer, request.keep_alive, request.method == "HEAD")
        self._transport.write(data)
        self._count(exchange, Send(data, chunks=1, events=1))
        exchange.status = answer.status
        self._record.finished(exchange, "completed")
        self._current = None
        if not request.keep_alive:
            self._end("server_closed")
            self._transport.close()

    async def _answer(self, request: Request, exchange: Exchange, reply: Answer | Coroutine[Any, Any, Answer]) -> None:
        """Perform an answer step by step, then go on with the next request."""
        async with self._site.turn(request):
            answer = reply if isinstance(reply, Answer) else await reply
            exchange.status = answer.status
            for step in script(answer, request.version, request.keep_alive, request.method == "HEAD"):
                await self._perform(step, exchange)
                if self._over:
                    return
        self._record.finished(exchange, "completed")
        self._current = self._task = None
        self._work()

    def _answered(self, task: asyncio.Task[None]) -> None:
        """A fault of this program must not look like a server that hangs."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            traceback.print_exception(error)
            self.close()

    async def _perform(self, step: Step, exchange: Exchange) -> None:
        if self._thawed is not None:
            await self._thawed.wait()
        if isinstance(step, Send):
            self._transport.write(step.data)
            await self._flushed()
            self._count(exchange, step)
        elif isinstance(step, Cut):
            await self._cut(step, exchange)
        elif step.seconds == math.inf:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(step.seconds)

    def _count(self, exchange: Exchange, sent: Send) -> None:
        if exchange.first_byte_at is None:
            exchange.first_byte_at = time.monotonic()
        exchange.bytes_sent += len(sent.data)
        exchange.chunks_sent += sent.chunks
        exchange.events_sent += sent.events

    async def _flushed(self) -> None:
        """Wait until the kernel has all that was written, so that each step is a packet and a slow reader slows us."""
        await asyncio.sleep(0)
        if self._transport.get_write_buffer_size():
            await _until(lambda: not self._transport.get_write_buffer_size(), LOOK_EVERY)

    async def _cut(self, cut: Cut, exchange: Exchange) -> None:
        if cut.how in ("rst", "exit", "stop"):
            await self._delivered()
        if cut.how == "exit":
            os.kill(os.getpid(), signal.SIGKILL)
        elif cut.how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)  # all of the process; after SIGCONT the answer goes on
        else:
            self._record.finished(exchange, "killed" if cut.early else "completed")
            self._end("killed" if cut.early else "server_closed")
            if cut.how == "rst":
                self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._transport.abort()
            else:
                self._transport.close()

    async def _delivered(self) -> None:
        """Wait until the client's kernel has taken all, since a reset throws away what has not arrived."""
        end = time.monotonic() + DELIVERY_LIMIT
        await _until(lambda: time.monotonic() > end or not _unsent(self._socket()), LOOK_EVERY)

    def _socket(self) -> socket.socket:
        found: socket.socket = self._transport.get_extra_info("socket")
        return found

    # The end

    def _refuse(self, why: str) -> None:
        answer = Answer.of_json({"error": {"message": why, "type": "invalid_request_error", "code": 400}}, 400)
        self._transport.write(whole(answer, keep_alive=False))
        self._end("server_closed")
        self._transport.close()

    def _left(self) -> None:
        """The client is gone: stop the work for it and note the time."""
        self._end("client_closed")
        if self._thawed is not None or self._watcher is not None:
            self._transport.abort()

    def _end(self, ended: Ending) -> None:
        """Note how the connection and what is open on it ended; only the first call counts."""
        if self._over:
            return
        self._over = True
        of_request: Ending = "killed" if ended == "server_closed" else ended
        unfinished = [self._current, *(exchange for _, exchange in self._waiting), self._exchange]
        for exchange in unfinished:
            if exchange is not None:
                self._record.finished(exchange, of_request)
        self._record.disconnected(self._visit, ended)
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _stop_reading(self) -> None:
        """Read no more, but go on to look whether the client is there."""
        if self._watcher is not None or self._over:
            return
        self._transport.pause_reading()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._socket().fileno(), getattr(select, "POLLRDHUP", 0))
        await _until(lambda: bool(poll.poll(0)), WATCH_EVERY)
        self._left()


async def _until(condition: Callable[[], bool], every: float) -> None:
    """Wait for a state of the kernel's queues, of which no event tells, by looking each ``every`` seconds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(every)


def _unsent(connection: socket.socket) -> int:
    """Bytes that the peer has not acknowledged; SIOCOUTQ, tcp(7), which has the number of TIOCOUTQ."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])
