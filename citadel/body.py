"""A request's headers by name, and its body, read whole within limits on size and time before anything looks at it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from citadel.answer import Answer, Headers, length_of
from citadel.errors import Crowded, TooLarge, TooSlow, UnsupportedCoding, UnsupportedTransfer
from citadel.sections import Config

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
NOTHING, HALF, ALL = 0.0, 0.5, 1.0
"""Of the room for bodies that are not whole: for who proves nothing, who may prove something, who is known."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is taken and thrown away, so that the client reads our answer."""


class ClientLeft(Exception):
    """The client has gone before its request was whole."""


class Bodies:
    """What a body may be, and how much one worker keeps of those that are not whole."""

    def __init__(self, config: Config):
        self._largest = config.security.max_body_mb * 1024 * 1024
        self._room = max(config.security.pending_bodies_mb * 1024 * 1024, 2 * self._largest)
        self._pending = 0
        self._seconds = config.timeouts.body

    def check_head(self, headers: Mapping[bytes, bytes]) -> None:
        """TooLarge for a declared length that is, or is none; UnsupportedCoding for a body that is packed."""
        length = headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._largest):
            raise self._too_large()
        if headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            raise UnsupportedCoding("The body has a content-encoding; send it as it is.")
        if headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise UnsupportedTransfer("The body has a transfer-encoding that is not 'chunked'.")

    def check_size(self, size: int) -> None:
        """TooLarge for more than so many bytes."""
        if size > self._largest:
            raise self._too_large()

    async def receive(self, receive: Receive, part: float = HALF) -> bytes:
        """The whole body; TooLarge at the first byte too many, TooSlow, ClientLeft, Crowded when more is kept of all
        bodies than that part of the room. With `NOTHING` it is read and thrown away, and empty.
        """
        pieces: list[bytes] = []
        size = kept = 0
        deadline = time.monotonic() + self._seconds
        try:
            while True:
                message = await self._receive(receive, deadline - time.monotonic())
                piece = message.get("body", b"")
                size += len(piece)
                self.check_size(size)
                if part:
                    pieces.append(piece)
                if not message.get("more_body"):
                    return b"".join(pieces)
                if part:
                    kept += len(piece)
                    self._keep(len(piece), part)
        finally:
            self._pending -= kept

    def _keep(self, size: int, part: float) -> None:
        self._pending += size
        if self._pending > self._room * part:
            raise Crowded("This worker waits for the rest of as many bodies as it may keep.", retry_after=1)

    async def _receive(self, receive: Receive, within: float) -> Message:
        try:
            async with asyncio.timeout(within):
                message = await receive()
        except TimeoutError:
            raise TooSlow(f"The body did not come within {self._seconds:g} s.") from None
        if message["type"] == "http.disconnect":
            raise ClientLeft
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is larger than {self._largest} bytes.")


async def refuse(answer: Answer, own: Headers, receive: Receive, send: Send) -> None:
    """Answers, then takes what the client is still sending: closing on it at once would destroy the answer."""
    headers = [*own, *answer.raw_headers, (b"connection", b"close"), length_of(answer.content)]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": answer.content, "more_body": True})
    try:
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def headers_of(lines: Headers) -> dict[bytes, bytes]:
    """Headers by name; the lines of one name are joined (RFC 9110, 5.3; for cookies RFC 9113, 8.2.3)."""
    headers = dict(lines)
    if len(headers) == len(lines):
        return headers
    values: dict[bytes, list[bytes]] = {}
    for name, value in lines:
        values.setdefault(name, []).append(value)
    return {name: (b"; " if name == b"cookie" else b", ").join(several) for name, several in values.items()}
