"""The fleet is told live by several workers, through the death of one and of the database, to whoever reads."""

import asyncio
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack

import aiohttp
import psutil
import psycopg
import pytest

from tests.instance import Instance, running
from tests.orchestration.socket import ASKING, Socket, ready, watching

MANY = 8
"""Sockets that are opened at once."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    settings = {"CITADEL_DEMO_FLEET": "0", "CITADEL_SERVER__WORKERS": "2"}
    with running(tmp_path_factory.mktemp("two"), settings) as citadel:
        yield citadel


@pytest.fixture
def server_id() -> str:
    return f"s-{secrets.token_hex(4)}"


def happen(citadel: Instance, server_id: str, count: int = 1, *, size: int = 0) -> None:
    """Events of a server, each in a transaction of its own."""
    with psycopg.connect(citadel.database_url, autocommit=True) as connection:
        for number in range(count):
            connection.execute(
                "INSERT INTO orchestration_event (type, server_id, at, data) VALUES ('server_drained', %s, now(), "
                "jsonb_build_object('state', 'draining', 'before', 'active', 'by', %s::text))",
                (server_id, f"{number}{'x' * size}"),
            )


def pid(citadel: Instance, name: str) -> int:
    return int((citadel.home / "run" / f"{name}.pid").read_text())


async def watchers(stack: AsyncExitStack, citadel: Instance) -> dict[int, list[Socket]]:
    """Many who watch, by the worker that has them."""
    sockets: list[Socket] = []
    for key in await keys(citadel, 20):
        opening = (stack.enter_async_context(watching(citadel, key=key)) for _ in range(MANY))
        sockets += await asyncio.gather(*opening)
        found = {pid(citadel, name): of_worker(sockets, pid(citadel, name)) for name in ("web-1", "web-2")}
        if all(found.values()):
            await asyncio.gather(*map(ready, sockets))
            return found
        await asyncio.sleep(0.5)  # it may still be starting
    raise AssertionError("one worker takes all")


async def keys(citadel: Instance, count: int) -> list[str]:
    """New ones, since one alone has only a part of a worker's room."""
    made = []
    async with aiohttp.ClientSession(citadel.url, headers={"authorization": f"Bearer {citadel.admin_key}"}) as session:
        for number in range(count):
            async with session.post("/api/v1/keys", json={"name": f"watcher {number}", "role": "auditor"}) as answer:
                made.append((await answer.json())["key"])
    return made


def of_worker(sockets: list[Socket], worker: int) -> list[Socket]:
    try:
        ports = {link.raddr.port for link in psutil.Process(worker).net_connections("tcp4") if link.raddr}
    except psutil.NoSuchProcess:  # the next one has not begun yet
        return []
    return [one for one in sockets if one.port in ports]


async def back(citadel: Instance) -> None:
    """Waits until both workers serve."""
    key = {"authorization": f"Bearer {citadel.admin_key}"}
    async with aiohttp.ClientSession(citadel.url, headers=key) as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get("/health/ready") as answer:
                    living = [psutil.pid_exists(pid(citadel, name)) for name in ("web-1", "web-2")]
                    if answer.status == 200 and all(living):
                        return
            except (OSError, aiohttp.ClientError, ValueError):
                pass
            await asyncio.sleep(0.1)


async def test_all_are_told_by_whichever_worker(two: Instance, server_id: str) -> None:
    async with AsyncExitStack() as stack:
        found = await watchers(stack, two)
        happen(two, server_id, 3)
        told = await asyncio.gather(*(one.events(server_id, 3) for some in found.values() for one in some))
        assert all(events == told[0] for events in told)
        happen(two, f"{server_id}-end")
        for socket in (one for some in found.values() for one in some):
            await socket.events(f"{server_id}-end", 1)
            assert len([one for one in socket.told if one.get("server_id") == server_id]) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 1006), (signal.SIGTERM, 1012)])
async def test_who_loses_a_worker_gets_the_rest_from_another(
    two: Instance, server_id: str, number: signal.Signals, code: int
) -> None:
    async with AsyncExitStack() as stack:
        found = await watchers(stack, two)
        happen(two, server_id)
        for socket in (one for some in found.values() for one in some):
            [last] = await socket.events(server_id, 1)
        victim, others = pid(two, "web-1"), found[pid(two, "web-2")]
        os.kill(victim, number)
        assert await found[victim][0].closed() == code
        happen(two, server_id, 2)
        async with watching(two, query=f"?since={last['id']}") as again:
            missed = await again.events(server_id, 2)
        assert [await one.events(server_id, 2) for one in others] == [missed] * len(others)
    await back(two)


async def test_when_the_database_is_back_nothing_is_missing(two: Instance, server_id: str) -> None:
    async with AsyncExitStack() as stack:
        found = await watchers(stack, two)
        sockets = [one for some in found.values() for one in some]
        happen(two, server_id)
        for socket in sockets:
            [last] = await socket.events(server_id, 1)
        os.kill(pid(two, "postgres"), signal.SIGKILL)
        for socket in sockets:
            await socket.until(lambda message: message == {"type": "events_live", "live": False})
        late = await stack.enter_async_context(watching(two, query=f"?since={last['id']}"))
        assert (await late.next())["type"] == "snapshot"
        await until_written(two, server_id)
        for socket in [*sockets, late]:
            [missed] = await socket.events(server_id, 1)
            assert missed["id"] > last["id"]
    await back(two)


async def until_written(citadel: Instance, server_id: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                happen(citadel, server_id)
                return
            except psycopg.Error:
                await asyncio.sleep(0.1)


async def test_who_reads_nothing_is_let_go_and_costs_no_memory(two: Instance, server_id: str) -> None:
    async with AsyncExitStack() as stack:
        found = await watchers(stack, two)
        reader = next(iter(found.values()))[0]
        sleepers = [await asleep(two) for _ in range(10)]
        workers = [psutil.Process(pid(two, name)) for name in ("web-1", "web-2")]
        before = [one.memory_info().rss for one in workers]
        happen(two, server_id, 600, size=40_000)  # 24 MB for each who reads
        assert len(await reader.events(server_id, 600)) == 600
        grown = [one.memory_info().rss - earlier for one, earlier in zip(workers, before, strict=True)]
        assert max(grown) < 80 * 1024 * 1024, "where all was kept, that of five at least: 120 MB"
        for _ in range(150):
            if not any(is_open(workers, port) for port, _ in sleepers):
                break
            await asyncio.sleep(0.2)
        else:
            raise AssertionError("who does not read is still there")
        for _, writer in sleepers:
            writer.transport.abort()


async def test_a_worker_that_ends_does_not_wait_for_who_reads_nothing(two: Instance, server_id: str) -> None:
    async with AsyncExitStack() as stack:
        found = await watchers(stack, two)
        sleepers = [await asleep(two) for _ in range(10)]
        happen(two, server_id, 300, size=60_000)
        await asyncio.gather(*(one.events(server_id, 300) for some in found.values() for one in some))
        worker = psutil.Process(max(found, key=lambda one: sum(is_open([psutil.Process(one)], p) for p, _ in sleepers)))
        assert any(is_open([worker], port) for port, _ in sleepers)
        worker.terminate()
        await asyncio.to_thread(worker.wait, 5)
        for _, writer in sleepers:
            writer.transport.abort()
    await back(two)


async def asleep(citadel: Instance) -> tuple[int, asyncio.StreamWriter]:
    """The port of a client that asks for a socket and reads no more than a little of what it is sent."""
    host, _, port = citadel.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    head = {**ASKING, "host": host, "authorization": f"Bearer {citadel.admin_key}"}
    lines = ["GET /ws/console HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    assert b"101" in await reader.readline()
    own: int = writer.get_extra_info("sockname")[1]
    return own, writer


def is_open(workers: list[psutil.Process], port: int) -> bool:
    return any(link.raddr and link.raddr.port == port for one in workers for link in one.net_connections("tcp4"))


async def test_a_worker_has_room_for_so_many(two: Instance) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            for key in 41 * await keys(two, 10):
                await stack.enter_async_context(watching(two, key=key))
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert refused.value.headers["retry-after"] == "10"
