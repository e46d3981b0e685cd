"""WebSockets: what uvicorn's protocol for them lacks."""

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

CLOSES_WITHIN = 10.0
"""Seconds for which a WebSocket that was closed waits for its client to take that."""


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
        self.loop.call_later(CLOSES_WITHIN, self.transport.abort)
