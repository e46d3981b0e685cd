"""Row 13: lines without an end, and the memory of the one worker that reads forty of them at once."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from apps.gateway.inference.streams.sse import LARGEST_EVENT
from tests.gateway.client import Reply, streamed
from tests.gateway.elsewhere import Elsewhere
from tests.instance import Instance, free_port, running

STREAMS = 40
MEGABYTE = 1_000_000
CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
TOGETHER_WITHIN = 10.0
"""Seconds that one waits for the others."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One whose memory is its own: what other tests send to the run's Citadel would be weighed with the lines."""
    settings = {"CITADEL_DEMO_FLEET": "0", "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0"}
    with running(tmp_path_factory.mktemp("own"), settings) as citadel:
        yield citadel


@pytest.fixture(scope="module")
def at_first(alone: Instance) -> int:
    """Bytes that the worker takes before any of that."""
    return psutil.Process(alone.worker).memory_info().rss


@pytest.fixture
def own(alone: Instance) -> Iterator[Elsewhere]:
    """With a server of the test's, since it fails so often that it is out afterwards."""
    with Elsewhere.on(alone) as own:
        yield own


async def check_memory(own: Elsewhere, model: str, at_first: int) -> None:
    """The highest that the worker's memory ever is while all read, shared among them."""
    worker = psutil.Process(own.citadel.worker)
    async with own.asking() as client:

        async def ask(number: int) -> Reply:
            return await client.post(streamed(model, str(number)))

        highest = 0
        asked = asyncio.gather(*map(ask, range(STREAMS)))
        while not asked.done():
            highest = max(highest, worker.memory_info().rss)
            await asyncio.sleep(0.002)
        for reply in await asked:
            assert json.loads(reply.events[-1])["error"]["code"] == "stream_interrupted"
            assert "[DONE]" not in reply.events
            assert len(reply.body) < 10_000, "nothing of the line is passed on"
    assert (highest - at_first) / STREAMS < MEGABYTE


ALONE = (pytest.mark.faults, pytest.mark.alone)
"""Each takes all that a core has for half a minute."""


@pytest.mark.parametrize(
    "packet", [4_096, *(pytest.param(size, marks=ALONE) for size in (1_460, 16_384, 65_536, 200_000))]
)
async def test_lines_that_grow_side_by_side(own: Elsewhere, at_first: int, packet: int) -> None:
    """The most that can wait for its end in each of them, at the same time."""
    async with growing_lines(packet) as url:
        name = f"growing-{packet}"
        own.command("server", "add", name, url, "--model", name)
        own.citadel.settle()
        try:
            await check_memory(own, name, at_first)
        finally:
            own.command("server", "remove", name)


@pytest.mark.parametrize("kind", ["valid=true", "valid=false"])
async def test_lines_of_20_megabytes_take_one_each_at_most(own: Elsewhere, at_first: int, kind: str) -> None:
    own.server.behave(f"huge_line size=20000000 after=2 {kind}")
    await check_memory(own, own.model, at_first)


@contextlib.asynccontextmanager
async def growing_lines(packet: int) -> AsyncIterator[str]:
    """A server whose streams wait for each other after each packet of a line, until they are about to be too long."""
    together, left_alone = asyncio.Barrier(STREAMS), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + CHUNK)
            await asyncio.sleep(0.05)
            try:
                await send_line(writer)
            except ConnectionError:
                pass
            except (TimeoutError, asyncio.BrokenBarrierError) as error:
                left_alone.append(error)
        writer.close()

    async def send_line(writer: asyncio.StreamWriter) -> None:
        writer.write(b"data: ")
        sent = 0
        while sent < 20 * MEGABYTE:
            writer.write(b"y" * packet)
            sent += packet
            await writer.drain()
            if sent + packet < LARGEST_EVENT:
                async with asyncio.timeout(TOGETHER_WITHIN):
                    await together.wait()

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    async with server:
        yield f"http://127.0.0.1:{port}"
        assert not left_alone
