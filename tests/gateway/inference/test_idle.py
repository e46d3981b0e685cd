"""Idle connections: how many are kept after a burst, which ones, and that those still serve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.inference.http.connections import Connections
from apps.gateway.inference.http.idle import Bounds, surplus
from tests.gateway.inference.test_connections import ANSWER, FLEET, Scripted, Seen, listening

SETTLED = 2.5
"""Seconds after which nothing more is closed."""
MOMENTS = st.lists(st.integers(0, 20).map(float), max_size=12).map(sorted)
IDLE = st.dictionaries(st.sampled_from("abcd"), MOMENTS)
BOUNDS = st.builds(Bounds, st.integers(1, 20), st.integers(1, 8))


@given(IDLE, BOUNDS, st.integers(0, 20).map(float))
def test_what_is_closed_is_what_must_be(idle: dict[str, list[float]], bounds: Bounds, before: float) -> None:
    """The bounds hold but for what is still warm; nobody is closed who would have fitted, nor before an older one."""
    closed = surplus(idle, bounds, before)
    left = {place: since[closed.get(place, 0) :] for place, since in idle.items()}
    cold = {place: [at for at in since if at <= before] for place, since in left.items()}
    gone = {place: since[: closed.get(place, 0)] for place, since in idle.items()}
    assert all(at <= before for since in gone.values() for at in since)
    assert all(len(since) <= bounds.per_server or not cold[place] for place, since in left.items())
    many = sum(map(len, left.values()))
    assert many <= bounds.in_all or not any(cold.values())
    for place, since in gone.items():
        if since:
            assert many >= bounds.in_all or len(left[place]) >= bounds.per_server


@given(IDLE, BOUNDS)
def test_of_all_servers_the_longest_idle_go_first(idle: dict[str, list[float]], bounds: Bounds) -> None:
    roomy = Bounds(bounds.in_all, 1000)
    closed = surplus(idle, roomy, 20.0)
    everyone = sorted(at for since in idle.values() for at in since)
    gone = sorted(at for place, number in closed.items() for at in idle[place][:number])
    assert gone == everyone[: max(0, len(everyone) - roomy.in_all)]


class Crowd(Scripted):
    """Answers when as many ask at once as are awaited, and counts the connections that are open."""

    def __init__(self, awaited: int) -> None:
        super().__init__(self._when_all_are_there)
        self._all = asyncio.Barrier(awaited)
        self.open = 0

    async def _when_all_are_there(self, _seen: Seen) -> list[bytes]:
        await self._all.wait()
        return [ANSWER]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await super().serve(reader, writer)
        finally:
            self.open -= 1


@asynccontextmanager
async def connected(kept: Bounds) -> AsyncIterator[Connections]:
    connections = Connections(FLEET, connect=5, keep_alive=60, kept=kept)
    await connections.start()
    try:
        yield connections
    finally:
        await connections.stop()


async def burst(connections: Connections, port: int, size: int) -> None:
    """So many requests at once, each answered whole."""
    target = connections.target(f"http://127.0.0.1:{port}/v1/chat/completions", [])

    async def ask() -> None:
        response = await connections.post(target, b"", b"{}", 5)
        while not response.content.at_eof():
            await response.content.readany()
        response.release()

    await asyncio.gather(*(ask() for _ in range(size)))


async def test_after_a_burst_a_server_has_its_share_and_they_still_serve() -> None:
    server = Crowd(100)
    async with listening(server) as port, connected(Bounds(50, 30)) as connections:
        await burst(connections, port, 100)
        assert server.open == 100, "nothing is closed in the burst itself"
        await asyncio.sleep(SETTLED)
        assert server.open == 30
        server._all = asyncio.Barrier(30)
        await burst(connections, port, 30)
        assert server.connections == 100, "no new connection"


async def test_all_servers_together_have_no_more_than_the_whole() -> None:
    servers = [Crowd(20) for _ in range(4)]
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(listening(server)) for server in servers]
        connections = await stack.enter_async_context(connected(Bounds(50, 30)))
        for port in ports:
            await burst(connections, port, 20)
        await asyncio.sleep(SETTLED)
        assert [server.open for server in servers] == [0, 10, 20, 20]


async def test_connections_in_turn_are_left_alone() -> None:
    """Under load each is used again before it counts as idle, however many there are."""
    server = Crowd(60)
    async with listening(server) as port, connected(Bounds(50, 30)) as connections:
        for _ in range(12):
            await burst(connections, port, 60)
            await asyncio.sleep(0.2)
        assert server.connections == 60
