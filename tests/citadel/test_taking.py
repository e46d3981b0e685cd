"""Who is cut off for taking nothing of an answer, over real sockets: the system between the two takes what it likes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from citadel.taking import LEAST_TAKEN, LOOK, Taking

WITHIN = 3.0
"""Seconds for which these clients may take nothing."""
LATEST = WITHIN + 3 * LOOK + 3
"""Seconds after which who takes nothing is cut off, on a busy machine."""
PLENTY = 4 * 1024 * 1024


class Answering(asyncio.Protocol):
    """Answers whoever comes with more than any system takes at once."""

    goes_on = False
    """Whether it writes more whenever there is room."""

    def __init__(self, come: asyncio.Future["Answering"]) -> None:
        self._come = come
        self.over = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.taking = Taking(transport, asyncio.get_running_loop(), WITHIN)
        transport.write(bytes(PLENTY))
        self.taking.watch()
        self._come.set_result(self)

    def resume_writing(self) -> None:
        self.taking.resumed()
        if self.goes_on:
            self.transport.write(bytes(LEAST_TAKEN))

    def connection_lost(self, error: Exception | None) -> None:
        self.taking.stop()
        self.over.set_result(None)

    def room(self, size: int) -> None:
        """Lets the system keep so many bytes for the client, as it does by itself once there is memory again."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


@asynccontextmanager
async def answered() -> AsyncIterator[tuple[Answering, socket.socket]]:
    """An answer, and the client that it is for."""
    loop = asyncio.get_running_loop()
    come = loop.create_future()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        server = await loop.create_server(lambda: Answering(come), sock=listening)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, listening.getsockname())
        answer = await come
        yield answer, client
        answer.transport.abort()
        server.close()


async def take(client: socket.socket, size: int) -> int:
    """Takes so much of what is there, or comes at once; gives how much that was."""
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while taken < size:
                taken += len(await asyncio.get_running_loop().sock_recv(client, size - taken))
    return taken


async def test_who_takes_nothing_is_cut_off() -> None:
    async with answered() as (answer, _), asyncio.timeout(LATEST):
        await answer.over


async def test_what_the_system_takes_meanwhile_gives_no_more_time() -> None:
    async with answered() as (answer, _), asyncio.timeout(LATEST):
        size = 8192
        while not answer.over.done():
            size *= 2
            answer.room(size)
            answer.transport.write(bytes(size))
            await asyncio.wait([answer.over], timeout=1)


@pytest.mark.parametrize("written", [0, LEAST_TAKEN])
async def test_who_takes_a_piece_each_time_is_not(written: int) -> None:
    """However much is added meanwhile."""
    async with answered() as (answer, client):
        for _ in range(int(LATEST)):
            assert await take(client, LEAST_TAKEN) == LEAST_TAKEN
            answer.transport.write(bytes(written))
            await asyncio.sleep(1)
        assert not answer.over.done()


async def test_nor_where_no_system_tells_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is told by what has room again: what waits for who reads on is soon as much as before."""
    monkeypatch.setattr("citadel.taking.sys.platform", "other")
    async with answered() as (answer, client):
        answer.goes_on = True
        for _ in range(int(LATEST)):
            assert await take(client, 2 * LEAST_TAKEN) == 2 * LEAST_TAKEN
            await asyncio.sleep(1)
        assert not answer.over.done()


async def test_nothing_is_looked_at_that_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with answered() as (answer, _):
        answer.connection_lost = lambda _: None  # as where another protocol has the connection
        answer.transport.abort()
        await asyncio.sleep(1.5 * LOOK)
    assert not caplog.records


async def test_who_takes_all_that_there_is_is_not() -> None:
    """Though that is little: a stream of which a word comes now and then."""
    async with answered() as (answer, client):
        taken = 0
        while taken < PLENTY:
            taken += await take(client, PLENTY - taken)
        for _ in range(int(LATEST)):
            answer.transport.write(b"word")
            assert await take(client, 4) == 4
            answer.taking.watch()
            await asyncio.sleep(1)
        assert not answer.over.done()
