"""What a worker holds for whoever comes: so many connections, so much of bodies that are not whole, so many pages."""

import asyncio
import gzip
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import aiohttp
import psutil
import psycopg
import pytest

from apps.gateway.access.keys.shape import mint
from tests.faults.client import CHAT, Wire, request_head, wired
from tests.gateway.access.test_oauth import TOKEN, WELL_KNOWN
from tests.gateway.client import Client
from tests.instance import Instance, running
from tests.orchestration.socket import ASKING

CONNECTIONS = 30
MB = 1024 * 1024
PAGES = 40
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_LIMITS__OTHERS_PER_MINUTE": str(PAGES),
    "CITADEL_SECURITY__CONNECTIONS": str(CONNECTIONS),
    "CITADEL_SECURITY__MAX_BODY_MB": "2",
    "CITADEL_SECURITY__PENDING_BODIES_MB": "8",
}
LEND = "/api/v1/auth/token"
CHALLENGE = "/admin/second-factor/webauthn/login/"

Coming = Callable[[str], AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One worker that has little room."""
    with running(tmp_path_factory.mktemp("small"), SETTINGS) as citadel:
        yield citadel


@pytest.fixture
def coming(small: Instance) -> Coming:
    """Clients of it that come from an address."""

    @asynccontextmanager
    async def come(address: str) -> AsyncIterator[Client]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(small.url, connector=connector, cookie_jar=jar) as session:
            yield Client(session)

    return come


async def get(wire: Wire, path: str) -> tuple[int, dict[str, str], bytes]:
    await wire.send(f"GET {path} HTTP/1.1\r\nhost: citadel\r\n\r\n".encode())
    return await wire.answer()


async def until_answered(small: Instance, path: str) -> None:
    """A connection that has been closed is given back at once, but not before the worker has heard of it."""
    deadline = time.monotonic() + 5
    while True:
        async with wired(small.url) as wire:
            if (await get(wire, path))[0] != 503:
                return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


# Connections.


async def test_one_connection_too_many_is_told_so_and_closed(small: Instance) -> None:
    key = small.admin_key
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(wired(small.url)) for _ in range(CONNECTIONS - 1)]
        socket = await stack.enter_async_context(wired(small.url))
        await socket.send(
            b"GET /ws/console HTTP/1.1\r\nhost: citadel\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            + f"authorization: Bearer {key}\r\n\r\n".encode()
        )
        assert (await socket.head())[0] == 101, "a WebSocket is a connection"
        for path in ("/v1/models", "/health/detailed", "/health/livelier"):
            async with wired(small.url) as wire:
                status, headers, body = await get(wire, path)
                assert (status, json.loads(body)["error"]["code"]) == (503, "server_full")
                assert (headers["retry-after"], headers["connection"]) == ("1", "close")
                assert await wire.rest() == b""
        async with wired(small.url) as silent:
            status, _, _ = await silent.answer(5)
            assert status == 503, "who says nothing is not waited for"
            assert await silent.rest() == b""
        for path in ("/health/live", "/health/ready", "/health/"):
            async with wired(small.url) as probe:
                status, headers, _ = await get(probe, path)
                assert (status, headers["connection"]) == (200, "close")
                assert await probe.rest() == b""
        async with wired(small.url) as slow:
            await slow.send(b"GET /health/live HTTP/1.1\r\n")
            assert (await slow.head())[0] == 503, "a probe comes at once"
        for one in held:
            assert (await get(one, "/health/live"))[0] == 200, "who is there stays"
        held[0].leave()
        await until_answered(small, "/health/detailed")
        socket.leave()
        await asyncio.sleep(1.2)  # connections are told once a second
        status, told = await metrics(held[1], key)
        assert status == 200
        assert told["citadel_connections_refused_total"] >= 5
        assert told["citadel_connections"] == CONNECTIONS - 2


async def metrics(wire: Wire, key: str) -> tuple[int, dict[str, float]]:
    await wire.send(f"GET /metrics HTTP/1.1\r\nhost: citadel\r\nauthorization: Bearer {key}\r\n\r\n".encode())
    status, _, body = await wire.answer()
    lines = (line.split(" ") for line in body.decode().splitlines() if line.startswith("citadel_connections"))
    return status, {name: float(value) for name, value in lines}


# Bodies that are not whole.


async def begin(stack: AsyncExitStack, small: Instance, path: str, size: int, **headers: str) -> Wire:
    """A request of which the last byte is missing."""
    wire = await stack.enter_async_context(wired(small.url))
    body = b"{" + b" " * (size - 2)
    await wire.send(request_head(path, {**headers, "content-length": str(size)}) + body)
    return wire


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_bodies_of_who_proves_nothing_take_no_room(small: Instance) -> None:
    worker = psutil.Process(small.worker)
    before = worker.memory_info().rss
    misspelt = mint()[0][:-1] + "?"
    async with AsyncExitStack() as stack:
        wires = []
        for number in range(24):
            proof = bearer(misspelt) if number % 2 else {}
            wires.append(await begin(stack, small, CHAT, 2 * MB, **proof))
        await asyncio.sleep(1)
        assert worker.memory_info().rss - before < 12 * MB  # of 48
        for wire in wires:
            await wire.send(b"}")
            status, _, body = await wire.answer()
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(("path", "proof"), [(CHAT, True), ("/admin/login/", False), (TOKEN, False)])
async def test_strangers_bodies_have_half_of_the_room(small: Instance, path: str, proof: bool) -> None:
    """Keys that somebody has made up are well formed too."""
    async with AsyncExitStack() as stack:
        wires = [
            await begin(stack, small, path, MB, **(bearer(mint()[0]) if proof else {"content-type": "text/plain"}))
            for _ in range(8)
        ]
        answered = 0
        for wire in wires:
            try:
                status, headers, body = await wire.answer(0.5)
            except TimeoutError:
                continue
            assert (status, json.loads(body)["error"]["code"]) == (503, "server_full")
            assert headers["retry-after"] == "1"
            answered += 1
        assert answered == 4
        known = await begin(stack, small, LEND, MB, **bearer(small.admin_key))
        await asyncio.sleep(0.2)
        await known.send(b"}")
        assert (await known.answer())[0] == 200, "who has a key has room"
        for wire in wires:
            wire.leave()
        await asyncio.sleep(0.2)
        again = await begin(stack, small, path, MB, **(bearer(mint()[0]) if proof else {"content-type": "text/plain"}))
        await again.send(b"}")
        assert (await again.answer())[0] != 503, "what was given back is free"


# Pages.


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/api/v1/openapi.json", "127.0.1.1"),
        (WELL_KNOWN, "127.0.1.2"),
        ("/health/detailed", "127.0.1.3"),
        ("/health/enterprise", "127.0.1.4"),
        ("/admin/login/", "127.0.1.5"),
    ],
)
async def test_strangers_pages_are_bounded_by_address(coming: Coming, path: str, address: str) -> None:
    async with coming(address) as client:
        replies = [await client.ask("HEAD", path) for _ in range(PAGES + 5)]
        assert [reply.status for reply in replies[PAGES:]] == [429] * 5
        assert 429 not in {reply.status for reply in replies[:PAGES]}
        assert 0 < int(replies[-1].headers["retry-after"]) <= 60
        for probed in ("/health/live", "/health/ready", "/health"):
            assert (await client.get(probed)).status == 200
        assert (await client.get("/v1/models", key="wrong")).status == 401
        assert (await client.post(b"", LEND)).status == 401
    async with coming("127.0.1.9") as other:
        assert (await other.ask("HEAD", path)).status != 429


async def test_webhooks_of_strangers_are_bounded_by_address(coming: Coming) -> None:
    """Of who offers a proof, for that is looked up. Who offers none gets his 401, as with a key that is none."""
    path = "/webhooks/alertmanager"
    async with coming("127.0.1.11") as client:
        offers = [{"webhook_signature": "x"}, {"authorization": "Bearer whk_x"}]
        statuses = [(await client.post(b"{}", path, **offers[n % 2])).status for n in range(PAGES + 5)]
        assert statuses == [401] * PAGES + [429] * 5
        assert {(await client.post(b"{}", path)).status for _ in range(5)} == {401}
        assert {(await client.post(b"{}", path, key=key)).status for key in ("wrong", mint()[0])} == {401}
    async with coming("127.0.1.12") as other:
        assert (await other.post(b"{}", path, webhook_signature="x")).status == 401


async def test_sockets_of_strangers_are_bounded_by_address(small: Instance, coming: Coming) -> None:
    """Of who brings a session, for that is looked for in the database; what costs nothing is not counted."""

    def asking(**headers: str) -> dict[str, str]:
        return {**ASKING, "cookie": f"sessionid={secrets.token_hex(16)}", "origin": small.url, **headers}

    path = "/ws/console"
    async with coming("127.0.1.13") as client:
        free = [ASKING, asking(origin="https://evil.example"), asking(authorization="Bearer wrong")]
        assert {(await client.get(path, **free[n % 3])).status for n in range(PAGES + 5)} == {401, 403}
        replies = [await client.get(path, **asking()) for _ in range(PAGES + 5)]
        assert [reply.status for reply in replies] == [401] * PAGES + [429] * 5
        assert replies[-1].code == "rate_limit_exceeded"
        assert 0 < int(replies[-1].headers["retry-after"]) <= 60
        assert [(await client.get(path, **headers)).status for headers in free] == [401, 403, 401]
    async with coming("127.0.1.14") as other:
        assert (await other.get(path, **asking())).status == 401


async def test_probes_are_never_too_many(coming: Coming) -> None:
    async with coming("127.0.1.7") as client:
        for path in ("/health/live", "/health/ready", "/health/"):
            assert {(await client.get(path)).status for _ in range(PAGES + 5)} == {200}


async def test_a_stranger_makes_few_sessions(small: Instance, coming: Coming) -> None:
    """A challenge for a passkey is kept in one."""
    with psycopg.connect(small.database_url, autocommit=True) as database:
        before = sessions(database)
        async with coming("127.0.1.8") as client:
            headers = {"x_requested_with": "XMLHttpRequest"}
            statuses = [(await client.get(CHALLENGE, **headers)).status for _ in range(PAGES - 2)]
        assert statuses == [200] * 30 + [429] * (PAGES - 32)
        assert sessions(database) - before == 30


def sessions(database: "psycopg.Connection[tuple[int]]") -> int:
    [count] = database.execute("SELECT count(*) FROM gateway_session").fetchone() or (0,)
    return count


async def test_the_description_is_the_same_packed_or_not(coming: Coming) -> None:
    async with coming("127.0.1.10") as client:
        plain = await client.get("/api/v1/openapi.json", accept_encoding="identity")
        async with client.session.get(
            "/api/v1/openapi.json", headers={"accept-encoding": "gzip"}, auto_decompress=False
        ) as reply:
            assert reply.headers["content-encoding"] == "gzip"
            assert gzip.decompress(await reply.read()) == plain.body
