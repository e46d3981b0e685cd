"""A client of `/ws/console` for tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from apps.orchestration.messages import Message
from tests.instance import Instance

Told = dict[str, Any]
_message = msgspec.json.Decoder(Message)
PATIENCE = 15.0
ASKING = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Socket:
    """One that is open; what a test waits for must be a message of the union."""

    def __init__(self, link: aiohttp.ClientWebSocketResponse):
        self.link = link
        self.told: list[Told] = []

    @property
    def port(self) -> int:
        """Its own."""
        port: int = self.link.get_extra_info("sockname")[1]
        return port

    async def next(self) -> Told:
        """The next message."""
        async with asyncio.timeout(PATIENCE):
            raw = await self.link.receive()
        assert raw.type is aiohttp.WSMsgType.TEXT, raw
        assert len(raw.data.encode()) <= 64 * 1024
        message: Told = msgspec.json.decode(raw.data)
        self.told.append(message)
        return message

    async def until(self, wanted: Callable[[Told], object]) -> Told:
        """The first message from now on that is wanted."""
        while not wanted(message := await self.next()):
            pass
        _message.decode(msgspec.json.encode(message))
        return message

    async def events(self, server_id: str, count: int) -> list[Told]:
        """So many events of a server, from now on."""
        return [await self.until(lambda m: "id" in m and m["server_id"] == server_id) for _ in range(count)]

    async def closed(self) -> int | None:
        """The code that it is closed with."""
        async with asyncio.timeout(PATIENCE):
            while (await self.link.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        return self.link.close_code


@asynccontextmanager
async def watching(
    citadel: Instance,
    *,
    path: str = "/ws/console",
    key: str | None = None,
    query: str = "",
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Socket]:
    """A socket of somebody who may see the fleet, unless said otherwise."""
    given = headers or {"authorization": f"Bearer {key or citadel.admin_key}"}
    async with (
        aiohttp.ClientSession(citadel.url) as session,
        session.ws_connect(f"{path}{query}", headers=given) as link,
    ):
        yield Socket(link)


async def refused(citadel: Instance, headers: dict[str, str], path: str = "/ws/console") -> tuple[int, str]:
    """The status and the code of the plain answer to who asks for a socket."""
    async with (
        aiohttp.ClientSession(citadel.url) as session,
        session.get(path, headers={**ASKING, **headers}) as answer,
    ):
        assert "x-request-id" in answer.headers
        return answer.status, (await answer.json())["error"]["code"]


async def ready(socket: Socket) -> Told:
    """Events come from now on."""
    return await socket.until(lambda m: m["type"] == "events_live" and m["live"])
