"""The bare relay: the least that uvicorn and aiohttp can do between a client and an upstream.

No key, no limits, no records, no routing: it reads the body, posts it, and hands back status and body, streams as they
come in. It is what Citadel's worker is compared with. Start it with ``python -m bench.relay PORT UPSTREAM_URL``.
"""

import gc
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Relay:
    """The ASGI application."""

    def __init__(self, upstream: str) -> None:
        """Take the upstream's base URL."""
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Relay one request, or follow the server's start and stop."""
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        assert self.session
        body = await _read(receive)
        headers = {"content-type": "application/json"}
        async with self.session.request(
            scope["method"], self.upstream + scope["path"], data=body, headers=headers
        ) as answer:
            kind = answer.content_type
            if kind == "text/event-stream":
                await _start(send, answer.status, [(b"content-type", kind.encode())])
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body"})
                return
            content = await answer.read()
            length = str(len(content)).encode()
            await _start(send, answer.status, [(b"content-type", kind.encode()), (b"content-length", length)])
            await send({"type": "http.response.body", "body": content})

    async def live(self, receive: Receive, send: Send) -> None:
        """Open the client's connections at the start and close them at the end."""
        await receive()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self.session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        gc.freeze()
        gc.set_threshold(100_000, 50, 1_000)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.session.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _read(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


if __name__ == "__main__":
    uvicorn.run(
        Relay(sys.argv[2]),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        backlog=4096,
    )
