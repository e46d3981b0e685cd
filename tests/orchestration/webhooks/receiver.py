"""A subscriber that answers as it is told and keeps what it got."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from apps.orchestration.webhooks import signing


@dataclass
class Got:
    """One delivery."""

    headers: dict[bytes, bytes]
    body: bytes
    json: dict[str, Any]

    @property
    def identity(self) -> str:
        return self.headers[b"webhook-id"].decode()

    def signed_by(self, secret: str) -> bool:
        """Whether a receiver that follows Standard Webhooks would believe it."""
        return (
            signing.check(secret, self.headers, self.body, float(self.headers[b"webhook-timestamp"])) == self.identity
        )


@dataclass
class Receiver:
    """`answers` are the statuses of the next deliveries, then 204; a status of 0 never answers."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def running(cls, *answers: int) -> AsyncIterator["Receiver"]:
        """One that listens on loopback."""
        receiver = cls(answers=list(answers))
        application = web.Application()
        application.router.add_post("/{path:.*}", receiver._take)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            receiver.url = f"http://{host}:{port}/events"
            yield receiver
        finally:
            await runner.cleanup()

    async def until(self, found: Callable[[list[Got]], Any], within: float = 15.0) -> list[Got]:
        """Waits for what was got to be so; gives those that `found` gives, or all."""
        for _ in range(int(within / 0.02)):
            if chosen := found(self.got):
                return chosen if isinstance(chosen, list) else self.got
            await asyncio.sleep(0.02)
        raise AssertionError(f"after {within} s: {[(one.identity, one.json) for one in self.got]}")

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
        self.got.append(Got(headers, body, await request.json()))
        status = self.answers.pop(0) if self.answers else 204
        if not status:
            await asyncio.sleep(60)
        return web.Response(status=status, headers=self.headers)
