"""A request's hold on its connection: takes a body that is there already, sends an answer, closes after a bad stream.

Without ASGI's messages, events and checks for them: together they cost a tenth of a request, and a fifth of a stream's
chunk.
"""

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from citadel.answer import Headers
from citadel.taking import Taking, cut_off

CLIENT_LEFT = 499
"""nginx's status for a client that has gone before it was answered."""


class Connection:
    """One request's hold on its connection; it stands in the scope as `citadel.connection`."""

    __slots__ = ("_chunked", "_cycle", "_taking", "gone", "on_client_left", "status")

    def __init__(self, cycle: RequestResponseCycle, taking: Taking):
        self._cycle = cycle
        self._taking = taking
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
        """Sends a whole answer; `headers` are well formed and tell the length of `body`, if the status allows that."""
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

    async def drain(self) -> None:
        """Waits until the client has read most of what was written, or left."""
        await self._cycle.flow.drain()

    def abort(self) -> None:
        """Ends the connection, whatever is still to be written."""
        cut_off(self._cycle.transport)

    def write(self, piece: bytes) -> None:
        """Sends a piece of a stream."""
        if piece and not self._cycle.disconnected:  # an empty chunk would be the last
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
            self._taking.watch()

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

    def close_after(self) -> None:
        """Makes this answer the connection's last."""
        self._cycle.keep_alive = False

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
