"""What only the server's protocol layer can do: notice at once that a client has left, close after a bad stream.

And take a body that is already there, and send a whole answer, without ASGI's messages, events and checks for them:
together they cost a tenth of a request.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from citadel.answer import Headers


class Connection:
    """One request's hold on its connection; it stands in the scope as `citadel.connection`."""

    __slots__ = ("_cycle", "gone", "on_client_left")

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self.gone = False
        """Whether the client left before the answer was whole."""
        self.on_client_left: Callable[[], object] | None = None
        """Called when that happens."""

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is here already."""
        cycle = self._cycle
        return None if cycle.more_body or cycle.disconnected else bytes(cycle.body)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole answer; `headers` are well formed, and the length of `body` is among them."""
        cycle = self._cycle
        if cycle.disconnected:
            return
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", b"" if cycle.scope["method"] == "HEAD" else body)
        cycle.transport.write(b"".join(lines))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def close_after(self) -> None:
        """Has the connection closed when the answer ends."""
        self._cycle.keep_alive = False

    def lost(self) -> None:
        """The connection has gone."""
        if not self._cycle.response_complete:
            self.gone = True
            if self.on_client_left is not None:
                self.on_client_left()


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, telling the running request what happens to its connection."""

    running: Connection | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """A request begins to be answered: at once, or when those before it on this connection have been."""
        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]  # ASGI lets servers add what they have
        scope["citadel.connection"] = self.running = Connection(cycle)
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        if self.running is not None:
            self.running.lost()
