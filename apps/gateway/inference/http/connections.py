"""Connections to servers: aiohttp's pool, resolver, TLS and parser, without its session.

The session serves every use of HTTP: redirects, cookies, proxies, bodies of all kinds. For what a gateway needs of it,
a head and a body in one write, that costs a fifth of a request, and a task for the body's sake.
"""

import asyncio
import functools
import re
import socket
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from apps.gateway.inference.http.idle import Bounds, surplus
from apps.gateway.inference.http.resolver import Connector
from citadel.addresses import Addresses
from citadel.deadlines import Deadlines

STALE_CONNECTIONS = 2
"""Kept connections that may turn out to have been closed before that counts as a failure."""
STALE_WITHIN = 1.0
"""Seconds in which a kept connection turns out to have been closed; later it is the request that failed."""
NO_LIMITS = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""Of the library's: ours are kept by `Deadlines`."""
SILENT_HOST = 2
"""Seconds after which a host that acknowledges nothing any more is given up."""
SILENT_UNDER_LOAD = 30
"""The same while a large body goes out: a busy server may let it wait, which to TCP looks alike."""
REST = 1.0
"""Seconds for which a connection beyond the bounds is still kept idle, and between two looks: a server under load
uses each of its connections again long before.
"""
LARGEST_LINE = 16 * 1024
LARGEST_FIELD = 32 * 1024
JOINED_UP_TO = 64 * 1024
"""Bytes of a body that are copied behind its head, for one write of both."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class BrokenFraming(aiohttp.ClientError):
    """An answer that isn't HTTP, or stops being it on the way."""


class _Protocol(ResponseHandler):
    """Knows whether it has served before, and tells the reader of a body at once that its framing is broken: the
    library tells only who waits for a head.
    """

    has_served = False

    def serve_again(self) -> bool:
        """Begins another request; whether it is not the connection's first."""
        served, self.has_served = self.has_served, True
        return served

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and isinstance(exc, HttpProcessingError):
            body.set_exception(BrokenFraming(str(exc)))


def _watchful_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket whose connection is probed when nothing passes, so that a silent host is noticed (tcp(7)).

    A machine without power closes nothing. Left to itself, TCP would hope for a quarter of an hour.
    """
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if option := getattr(socket, name, None):  # not every system has each
            made.setsockopt(socket.IPPROTO_TCP, option, 1)
    return made


def _give_up_after(seconds: int, transport: asyncio.Transport | None) -> None:
    """Sets for how long what was sent, a probe too, may stay without an acknowledgement."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option and transport is not None and not transport.is_closing():
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)


def _hang_up(connection: Connection) -> None:
    """Closes at once: nobody wants any more what is still to be sent, and a server that reads nothing would keep it."""
    protocol = connection.protocol
    transport = connection.transport
    if protocol is not None and transport is not None and transport.get_write_buffer_size():
        protocol.abort()
    connection.close()


class Target(NamedTuple):
    """An address of a server, and the head of every request to it, up to what differs between them."""

    request: aiohttp.ClientRequest
    """The connector's idea of where to connect; never sent."""
    head: bytes


class Response:
    """A server's answer, whose body may still be on the way. Must be released or closed."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, connection: Connection, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader
    ):
        self._connection = connection
        self.status = status
        self.headers = headers
        self.content = content

    def limit_silence(self, seconds: float) -> None:
        """From now on the body's reader gets a TimeoutError when nothing comes for so long."""
        protocol = self._connection.protocol
        if protocol is not None:  # which is a queue, and false when it is empty
            protocol.read_timeout = seconds
            protocol.start_timeout()

    def unread(self) -> bytes:
        """What had come before the connection broke off and was not read yet: its reader has given an error already,
        and would never give this.
        """
        return self.content._read_nowait(-1)

    def release(self) -> None:
        """The body has been read whole: the connection may serve again."""
        self._connection.release()

    def close(self) -> None:
        """Whatever else comes is not wanted; who still reads gets an aiohttp.ClientError."""
        _hang_up(self._connection)
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientConnectionError("closed"))


class Connections:
    """One worker's pool, to `addresses` alone. Times in seconds: until a server takes a connection, and for which an
    idle connection is kept; of those that are idle at most so many as `kept` says.
    """

    def __init__(self, addresses: Addresses, *, connect: float, keep_alive: float, kept: Bounds):
        self._addresses = addresses
        self._patience = connect
        self._first_bytes: dict[float, Deadlines] = {}
        """By their limits, which are few."""
        self._keep_alive = keep_alive
        self._kept = kept
        self._loop = asyncio.get_running_loop()
        self._connector: Connector
        self._next_look: asyncio.TimerHandle

    async def start(self) -> None:
        """Opens the pool, which has no limit of its own."""
        self._connector = Connector(
            self._addresses,
            self._patience,
            limit=0,
            keepalive_timeout=self._keep_alive,
            ttl_dns_cache=10,
            happy_eyeballs_delay=0.25,
            socket_factory=_watchful_socket,
        )
        make_protocol = functools.partial(_Protocol, loop=self._loop)
        self._connector._factory = make_protocol  # type: ignore[assignment]  # a protocol more special than theirs
        self._next_look = self._loop.call_later(REST, self._let_go_of_surplus)

    async def stop(self) -> None:
        """Closes every connection."""
        self._next_look.cancel()
        await self._connector.close()

    def _let_go_of_surplus(self) -> None:
        """Closes idle connections beyond the bounds. The library bounds connections in use alone, by letting wait."""
        self._next_look = self._loop.call_later(REST, self._let_go_of_surplus)
        idle = self._connector._conns
        since = {place: [at for _, at in connections] for place, connections in idle.items()}
        for place, number in surplus(since, self._kept, time.monotonic() - REST).items():
            for _ in range(number):
                idle[place].popleft()[0].close()
            if not idle[place]:
                del idle[place]

    def target(self, address: str, headers: Iterable[tuple[str, str]]) -> Target:
        """Where to post to, with the headers that all requests have; ValueError where they hold control characters."""
        url = yarl.URL(address)
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"host: {url.host_port_subcomponent}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if any(map(_CONTROL.search, lines)):
            raise ValueError("a header for a server holds control characters")
        request = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop())
        return Target(request, "".join(f"{line}\r\n" for line in lines).encode())

    async def post(self, target: Target, headers: bytes, body: bytes, first_byte: float) -> Response:
        """The answer to `body`, sent with the lines `headers` of its own, each with its end; its head may take so many
        seconds, of which there must be few different ones.

        Raises aiohttp.ClientError, TimeoutError, OSError. A kept connection that the server has closed in the meantime
        is no failure: the request goes out again.
        """
        begun, stale = self._loop.time(), 0
        while True:
            try:
                connection = await self._connect(target)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                if stale:  # it was sent: perhaps it has ended the server
                    raise aiohttp.ServerDisconnectedError from None
                raise
            protocol = connection.protocol
            was_kept = isinstance(protocol, _Protocol) and protocol.serve_again()
            try:
                return await self._exchange(connection, target.head, headers, body, first_byte)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                stale += 1
                if not was_kept or stale > STALE_CONNECTIONS or self._loop.time() - begun > STALE_WITHIN:
                    raise

    async def _connect(self, target: Target) -> Connection:
        """A connection that is free, or a new one."""
        try:
            connection = await self._connector.connect(target.request, [], NO_LIMITS)
        except TimeoutError:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from None
        if isinstance(connection.protocol, _Protocol) and not connection.protocol.has_served:
            _give_up_after(SILENT_HOST, connection.transport)
        return connection

    async def _exchange(
        self, connection: Connection, head: bytes, headers: bytes, body: bytes, first_byte: float
    ) -> Response:
        """Sends a request (RFC 9112) and waits for the head of its answer."""
        try:
            protocol = connection.protocol
            if protocol is None or protocol.transport is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, max_line_size=LARGEST_LINE, max_field_size=LARGEST_FIELD
            )
            head = b"%bcontent-length: %d\r\n%b\r\n" % (head, len(body), headers)
            if len(body) <= JOINED_UP_TO:
                protocol.transport.write(head + body)
                message, content = await self._read_head(protocol, first_byte)
            else:
                _give_up_after(SILENT_UNDER_LOAD, protocol.transport)
                protocol.transport.writelines((head, body))
                message, content = await self._read_head(protocol, first_byte)
                _give_up_after(SILENT_HOST, protocol.transport)
        except HttpProcessingError as error:
            _hang_up(connection)
            raise BrokenFraming(str(error)) from None
        except BaseException:
            _hang_up(connection)
            raise
        return Response(connection, message.code, message.headers, content)

    async def _read_head(
        self, protocol: ResponseHandler, first_byte: float
    ) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """The head of the answer and its body, after whatever informational ones there are."""
        deadlines = self._first_bytes.get(first_byte)
        if deadlines is None:
            deadlines = self._first_bytes[first_byte] = Deadlines(first_byte)
        with deadlines:
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        return message, content
