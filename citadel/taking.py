"""Whether a client takes what it is answered: who takes next to nothing of it is cut off, of a whole answer and of a
stream alike.

What counts is what the client's own system has acknowledged. That this one has taken more from the worker says nothing
of the client: its buffers grow while others are released.
"""

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios

import structlog

log = structlog.get_logger("citadel.taking")

LEAST_TAKEN = 64 * 1024
"""Bytes of an answer that a client must take, of those that wait for it, each time its patience is over: who reads them
one by one would hold the rest in memory for as long as it likes.
"""
LOOK = 2.0
"""Seconds between two looks."""
ACKNOWLEDGED = struct.Struct("=120xQ")
"""Where Linux's `tcp_info` has `tcpi_bytes_acked` (linux/tcp.h)."""


class Taking:
    """Looks after one connection while something waits for its client."""

    __slots__ = ("_loop", "_resumed", "_timer", "_transport", "_within")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, within: float):
        """`within` seconds a client takes all that waits for it, or `LEAST_TAKEN`."""
        self._transport = transport
        self._loop = loop
        self._within = within
        self._timer: asyncio.TimerHandle | None = None
        self._resumed = 0
        """How often there was room again for more of a stream."""

    def watch(self) -> None:
        """Something is there for the client: looks from now on until it has that, unless that goes on already. It asks
        the system, so not for each answer, or piece of one.
        """
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._begin)

    def resumed(self) -> None:
        """There is room again for more of a stream."""
        self._resumed += 1

    def stop(self) -> None:
        """Looks no more: the connection is gone, or another's."""
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        """Gives the client its time anew, if anything waits for it."""
        taken, waits = self._taken(), self._waits()  # in this order: what is taken in between must not be in both
        look = self._loop.time(), taken, min(waits, LEAST_TAKEN)
        self._timer = self._loop.call_later(LOOK, self._look, *look) if waits else None

    def _look(self, since: float, taken: int, least: int) -> None:
        """Cuts off who had taken `taken` bytes at `since`, and not `least` more within its time."""
        if self._taken() - taken >= least or not self._waits():
            self._begin()
        elif self._loop.time() - since >= self._within:
            log.info("answer_not_taken", waits=self._waits())
            cut_off(self._transport)
        else:
            self._timer = self._loop.call_later(LOOK, self._look, since, taken, least)

    def _waits(self) -> int:
        """Bytes that the client has not taken, in this worker and, where that tells (Linux), in the system."""
        queued = array.array("i", [0])
        with contextlib.suppress(OSError, ValueError):  # it tells nothing, or is closed
            fcntl.ioctl(self._socket().fileno(), termios.TIOCOUTQ, queued)  # as tcp(7) has it
        return self._transport.get_write_buffer_size() + queued[0]

    def _taken(self) -> int:
        """Bytes that the client has taken so far. Where no system tells that, by how much less waits, and a good piece
        each time that there was room again.
        """
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # it is no TCP, or gone already
                known = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED.size)
                if len(known) == ACKNOWLEDGED.size and (acknowledged := int(ACKNOWLEDGED.unpack(known)[0])):
                    return acknowledged
        return self._resumed * LEAST_TAKEN - self._waits()

    def _socket(self) -> socket.socket:
        found: socket.socket = self._transport.get_extra_info("socket")
        return found


def cut_off(transport: asyncio.Transport) -> None:
    """Closes a connection with all that waits in the system for its client too, which else went on to be sent for
    minutes (SO_LINGER of socket(7)).
    """
    with contextlib.suppress(OSError):  # it is gone already
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
