"""What only the server's protocol layer can do: notice at once that a client has left, close after a bad stream.

And take a body that is already there, and send an answer, without ASGI's messages, events and checks for them: together
they cost a tenth of a request, and a fifth of a stream's chunk.
"""

import asyncio
import select
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from citadel.answer import Headers

SOCKETS = b"/ws/"
"""Where WebSockets are."""
LINGER = 10.0
"""Seconds for which a WebSocket that was closed waits for its client to take that."""
CLIENT_LEFT = 499
"""nginx's status for a client that has gone before it was answered."""
LAST_CALL = 6
"""Seconds for which a worker that is to end keeps an idle connection: httpx, and so OpenAI's library, uses none again
after 5.
"""
UNREAD = 1
"""Seconds after which is looked again at a connection on which something has come that is not read yet."""


class Connection:
    """One request's hold on its connection; it stands in the scope as `citadel.connection`."""

    __slots__ = ("_chunked", "_cycle", "gone", "on_client_left", "status")

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self._chunked = True
        self.status = CLIENT_LEFT
        """What the client was told."""
        self.gone = False
        """Whether the client left before the answer was whole."""
        self.on_client_left: Callable[[], object] | None = None
        """Called when that happens."""

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is here already."""
        cycle = self._cycle
        return None if cycle.more_body or cycle.disconnected else bytes(cycle.body)

    def watch(self) -> None:
        """Goes on reading, which a long body had stopped: what isn't read doesn't tell that the client leaves."""
        self._cycle.flow.resume_reading()

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer; `headers` are well formed, and the length of `body` is among them."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        lines = self._head(status, headers)
        lines += (b"\r\n", b"" if cycle.scope["method"] == "HEAD" else body)
        cycle.transport.write(b"".join(lines))
        self._complete()

    def begin(self, headers: Headers) -> None:
        """Sends the head of a stream, whose pieces follow by `write`."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        # HTTP/1.0 knows no chunks: there the end of the connection is the end of the answer.
        self._chunked = cycle.scope["http_version"] != "1.0"
        cycle.keep_alive = cycle.keep_alive and self._chunked
        lines = self._head(200, headers)
        lines.append(b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        cycle.transport.write(b"".join(lines))

    @property
    def is_full(self) -> bool:
        """Whether the client reads more slowly than it is written to: then `drain` before the next `write`."""
        return self._cycle.flow.write_paused and not self._cycle.disconnected

    @property
    def unsent(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._cycle.transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Waits until the client has read most of what was written, or left."""
        await self._cycle.flow.drain()

    def abort(self) -> None:
        """Ends the connection, whatever is still to be written."""
        self._cycle.transport.abort()

    def write(self, piece: bytes) -> None:
        """Sends a piece of a stream."""
        if piece and not self._cycle.disconnected:  # an empty chunk would be the last
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    def end(self, *, close: bool) -> None:
        """Ends a stream, and the connection too if `close`."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        if self._chunked:
            cycle.transport.write(b"0\r\n\r\n")
        cycle.keep_alive = cycle.keep_alive and not close
        self._complete()

    def _head(self, status: int, headers: Headers) -> list[bytes]:
        cycle = self._cycle
        cycle.response_started = True
        self.status = status
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        return lines

    def _complete(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def release(self) -> None:
        """Lets go of the request, which holds this: else only the garbage collector could free the two."""
        self._cycle.scope.pop("citadel.connection", None)  # type: ignore[typeddict-item]  # ours, see `Protocol`
        self.on_client_left = None

    def lost(self) -> None:
        """The connection has gone."""
        if not self._cycle.response_complete:
            self.gone = True
            if self.on_client_left is not None:
                self.on_client_left()


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, telling the running request what happens to its connection."""

    running: Connection | None = None
    is_ending = False
    """Whether what is answered from now on is the connection's last."""

    def _should_upgrade_to_ws(self) -> bool:
        """Only where there are WebSockets: elsewhere a request stays one, whatever it would rather be. With a body it
        can't be another thing (RFC 9112, 7.8 would have it read first).
        """
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return self.url.startswith(SOCKETS) and self.scope["method"] == "GET" and not has_body

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request begins to be answered: at once, or when those before it on this connection have been."""
        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]  # ASGI lets servers add what they have
        scope["citadel.connection"] = self.running = Connection(cycle)
        if self.is_ending and not self.pipeline:
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """The worker is to end. Who was promised that the connection stays may send one more request on it."""
        if self.is_ending:
            return
        self.is_ending = True
        self.timeout_keep_alive = LAST_CALL
        cycle = self.cycle
        if cycle is not None and not cycle.response_started and not self.pipeline:
            cycle.keep_alive = False
        elif self.timeout_keep_alive_task or self.scope is None:  # nothing of a request has come
            self._expect(LAST_CALL)

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for long enough; it is closed unless a request has come that is not read yet."""
        if not self.transport.is_closing() and self._is_readable():
            self._expect(UNREAD)
        else:
            super().timeout_keep_alive_handler()

    def _expect(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _is_readable(self) -> bool:
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def on_response_complete(self) -> None:
        """An answer is whole."""
        self._release()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        if self.running is not None:
            self.running.lost()
        self._release()

    def _release(self) -> None:
        if self.running is not None:
            self.running.release()
            self.running = None


class Socket(WebSocketsSansIOProtocol):
    """Uvicorn's WebSockets, whose connections end for sure: a client that reads nothing would hold them for ever."""

    def data_received(self, data: bytes) -> None:
        """Bytes have come; what the library says to a request that is too large, uvicorn does not pass on."""
        super().data_received(data)
        if self.conn.handshake_exc and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_connect(self, event: Request) -> None:
        """A WebSocket is asked for; the application may end it by `citadel.abort`, whatever is still to be written."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["citadel.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]  # ours

    def shutdown(self) -> None:
        """The worker is to end; it may say so more than once."""
        if not self.transport.is_closing():
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """A client has not answered a ping."""
        super().keepalive_timeout()
        self.transport.abort()

    def on_task_complete(self, task: "asyncio.Task[None]") -> None:
        """The application has no more to say."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER, self.transport.abort)
