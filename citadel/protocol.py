"""What only the server's protocol layer can do: notice at once that a client has left, close after a bad stream."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol, telling the running request what happens to its connection.

    A request finds in its scope `citadel.close_after`, to be called before its last piece, and may leave there
    `citadel.client_left`, which is called when the client has gone before the answer was whole.
    """

    def on_message_begin(self) -> None:
        """A new request begins on this connection."""
        super().on_message_begin()
        self.scope["citadel.close_after"] = self._close_after  # type: ignore[typeddict-unknown-key]

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        cycle: Any = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_complete:
            client_left = cycle.scope.get("citadel.client_left")
            if client_left is not None:
                client_left()

    def _close_after(self) -> None:
        if self.cycle is not None:
            self.cycle.keep_alive = False
