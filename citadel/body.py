"""A request's headers by name, and its body, read whole within limits on size and time before anything looks at it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from citadel.answer import Answer, Headers, length_of
from citadel.errors import TooLarge, TooSlow, UnsupportedCoding, UnsupportedTransfer
from citadel.sections import Config

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
LINGER = 2.0
"""Seconds for which the rest of a refused body is taken and thrown away, so that the client reads our answer."""


class ClientLeft(Exception):
    """The client has gone before its request was whole."""


class Bodies:
    """What a body may be."""

    def __init__(self, config: Config):
        self._largest = config.security.max_body_mb * 1024 * 1024
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

    async def receive(self, receive: Receive) -> bytes:
        """The whole body; TooLarge at the first byte too many, TooSlow, ClientLeft."""
        pieces: list[bytes] = []
        size = 0
        deadline = time.monotonic() + self._seconds
        while True:
            message = await self._receive(receive, deadline - time.monotonic())
            piece = message.get("body", b"")
            pieces.append(piece)
            size += len(piece)
            self.check_size(size)
            if not message.get("more_body"):
                return b"".join(pieces)

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
