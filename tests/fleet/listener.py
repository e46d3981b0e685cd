"""The listening socket: open, closed, or with its queue full. The port stays ours all the time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Literal

BACKLOG = 4096
FILLERS = 16  # more connections than a queue of length 0 has room for
FILLED_AFTER = 0.05  # seconds; a connection to loopback that takes longer was not answered

State = Literal["open", "refuse", "silent_host"]


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds a port (a free one for 0) without listening: connections to it are refused.

    Several sockets of several processes may hold one port this way as long as one of them listens at most.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "darwin":  # where SO_REUSEADDR alone does not share a port
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((host, port))
    return holder


class Listener:
    """One port and whether somebody answers there."""

    def __init__(self, host: str, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._host = host
        self._protocol = protocol
        self._holder = bound(host, port)
        self._server: asyncio.Server | None = None
        self._full: list[socket.socket] = []
        self.port: int = self._holder.getsockname()[1]
        self.state: State = "refuse"

    async def become(self, state: State) -> None:
        """Open, close or fill; what is so already stays."""
        if state == self.state:
            return
        await self._stop()
        if state == "open":
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._protocol, sock=bound(self._host, self.port), backlog=BACKLOG)
        elif state == "silent_host":
            await self._fill()
        self.state = state

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await asyncio.sleep(0)  # uvloop closes the socket in its next turn
            self._server = None
        for held in self._full:
            held.close()
        self._full = []

    async def _fill(self) -> None:
        """Listen with a queue of length 0, never accept, and connect until the kernel drops SYN."""
        listening = bound(self._host, self.port)
        listening.listen(0)
        listening.setblocking(False)
        self._full.append(listening)
        for _ in range(FILLERS):
            filler = socket.socket(listening.family, socket.SOCK_STREAM)
            filler.setblocking(False)
            self._full.append(filler)
            with contextlib.suppress(BlockingIOError):
                filler.connect((self._host, self.port))
            await asyncio.sleep(FILLED_AFTER)
            if not _is_connected(filler):
                return


def _is_connected(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
