"""One HTTP/1.1 connection of the load generator: raw bytes out, answers parsed by httptools."""

import asyncio
from time import perf_counter_ns
from typing import Protocol, cast

from httptools import HttpParserError, HttpResponseParser


class Sender(Protocol):
    """Who uses a connection and hears of its answers."""

    def answered(self, connection: "Connection", status: int, body: bytes, first_byte: int, last_byte: int) -> None:
        """A whole answer has come; its times are those of ``time.perf_counter_ns``."""

    def lost(self, connection: "Connection", reason: str) -> None:
        """The connection has closed; if ``connection.busy`` then before its answer was whole."""


class Connection(asyncio.Protocol):
    """Sends one request at a time: ``busy`` while an answer is awaited, ``intended`` (ns) when it should have left,
    ``is_compared`` for one that is there to compare others with.
    """

    __slots__ = (
        "busy",
        "bytes",
        "first",
        "gap_max",
        "intended",
        "is_compared",
        "last",
        "number",
        "parser",
        "parts",
        "sender",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.busy = self.is_compared = False
        self.number = b""
        self.intended = self.first = self.last = self.gap_max = self.bytes = 0
        self.parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection that asyncio has opened."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own type is not declared as one
        self.parser = HttpResponseParser(self)

    def send(self, request: bytes, number: bytes, intended: int) -> None:
        """Send a whole request; ``intended`` (ns) is when its time starts, now or earlier."""
        self.busy = True
        self.number = number
        self.intended = intended
        self.first = 0
        self.parts = []
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Note the time and hand the bytes to the parser."""
        now = perf_counter_ns()
        if not self.first:
            self.first = now
        elif now - self.last > self.gap_max:
            self.gap_max = now - self.last
        self.last = now
        self.bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            self.fail(f"not HTTP ({error})")

    def on_body(self, body: bytes) -> None:
        """Called by the parser for each piece of a body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of an answer."""
        if not self.busy:
            self.fail("an answer that nobody asked for")
            return
        self.busy = False
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        if not self.parser.should_keep_alive():
            self.transport.close()
        self.sender.answered(self, self.parser.get_status_code(), body, self.first, self.last)

    def fail(self, reason: str) -> None:
        """Give the connection up."""
        self.sender.lost(self, reason)
        self.busy = False
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the sender."""
        self.sender.lost(self, f"connection lost ({exc})" if exc else "connection closed")
