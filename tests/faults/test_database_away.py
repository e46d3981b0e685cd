"""FAULTS row 6: PostgreSQL is gone for 30 seconds, under traffic of four workers."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import psycopg
import pytest

from apps.gateway.access.keys.shape import mint
from citadel.database import make_pool
from citadel.sections import Config
from tests.faults.invariants import PATH, STACK, eventually
from tests.faults.stores import (
    NORMAL_WITHIN,
    SETTINGS,
    failed,
    four_on,
    p99,
    recorded_once,
    start_database,
    stop_database,
    traffic,
)
from tests.gateway.access.console.visitor import Visitor
from tests.gateway.access.test_authentication import altered
from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import Four
from tests.held_up import HELD_UP
from tests.instance import free_port, running

pytestmark = [pytest.mark.faults, pytest.mark.alone]

AWAY = 30.0
AWAY_FROM_POOL = 17.0
"""Seconds. Of attempts that double their distance one would come 15 s after the loss, and the next 16 s later."""
RATE = 20
LATER = 0.1 + HELD_UP
"""Seconds by which one request in a hundred may take longer."""
SEQUENCES = 8
"""Clients that ask one thing after the other, each on a connection of its own and so of one worker."""
CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def case() -> None:
    """The run's own Citadel has no part in this."""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with running(tmp_path_factory.mktemp("home"), SETTINGS) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture
async def four(elsewhere: Elsewhere) -> AsyncIterator[Four]:
    async with four_on(elsewhere) as four:
        yield four


class Sequence:
    """Requests one after the other, by ids that say which came first."""

    def __init__(self, four: Four, model: str):
        self.prefix = f"seq-{secrets.token_hex(6)}"
        self._four = four
        self._model = model
        self._numbers = itertools.count()
        self._going = True

    async def run(self) -> None:
        """Until it is ended."""
        async with self._four.asking(one_worker=True) as asker:
            while self._going:
                reply = await asker.chat(self._model, headers={"x-request-id": f"{self.prefix}-{next(self._numbers)}"})
                assert reply.status == 200, reply.body
                await asyncio.sleep(0.1)

    def end(self) -> None:
        """No more after the one that runs."""
        self._going = False

    def check_recorded(self, connection: "psycopg.Connection[tuple[str]]") -> None:
        """All of them, once each, and in their order."""
        count = next(self._numbers)
        found: list[tuple[str]] = []

        def missing() -> int:
            found[:] = connection.execute(
                "SELECT request_id FROM audit_record WHERE starts_with(request_id, %s) ORDER BY id", (self.prefix,)
            ).fetchall()
            return count - len(found)

        eventually(missing)  # the last one has only just been answered
        assert [identity for (identity,) in found] == [f"{self.prefix}-{number}" for number in range(count)]


async def asked_with(four: Four, key: str, model: str) -> tuple[int, str, dict[str, str]]:
    """Status, code and headers of what a client gets with that key."""
    async with four.asking(key) as asker:
        reply = await asker.chat(model)
    return reply.status, reply.code if reply.status >= 400 else "", reply.headers


def check_page(page: httpx.Response) -> None:
    """What the console shows while the database is away: a page that says so, and nothing of the inside."""
    assert page.status_code == 503, page.text[:500]
    assert page.headers["content-type"].startswith("text/html")
    assert "database" in page.text
    assert int(page.headers["retry-after"]) >= 1
    assert not STACK.search(page.content), page.text
    assert not PATH.search(page.content), page.text


def check_console(four: Four, signed_in: Visitor) -> None:
    """To who is signed in and who would like to be."""
    check_page(signed_in.get("/admin/"))
    check_page(signed_in.get("/admin/audit/record/"))
    with Visitor(four.citadel) as stranger:
        check_page(stranger.get("/admin/login/"))


async def test_a_pool_finds_the_database_soon_however_long_it_was_away(elsewhere: Elsewhere) -> None:
    """Not after as long again, as it would that waits twice as long after each attempt."""
    url = urlsplit(elsewhere.citadel.database_url)
    behind = Path(dict(parse_qsl(url.query))["host"]) / ".s.PGSQL.5432"
    port = free_port()
    config = Config(
        home=Path("/nowhere"), database_url=f"postgresql://{url.username}:{url.password}@127.0.0.1:{port}{url.path}"
    )
    async with AsyncExitStack() as stack:
        async with forwarding(port, behind):
            pool = make_pool(config)
            await pool.open(wait=True)
            stack.push_async_callback(pool.close)
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection(timeout=1) as connection:
                    await connection.execute("SELECT 1")
        await asyncio.sleep(AWAY_FROM_POOL)
        async with forwarding(port, behind), pool.connection(timeout=5 + HELD_UP) as connection:
            await connection.execute("SELECT 1")


@asynccontextmanager
async def forwarding(port: int, behind: Path) -> AsyncIterator[None]:
    """The way from that port to a socket, on which all who are under way are lost at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while data := await reader.read(65536):
            writer.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(behind)
        await asyncio.gather(carry(reader, there[1]), carry(there[0], writer), return_exceptions=True)

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_the_database_is_gone_for_thirty_seconds(four: Four, model: str) -> None:
    citadel, unknown = four.citadel, mint()[0]
    four.server(model)
    known, sequences = four.elsewhere.key(), [Sequence(four, model) for _ in range(SEQUENCES)]
    assert (await asked_with(four, known, model))[0] == 200
    with Visitor(citadel) as signed_in:
        made = json.loads((citadel.home / "first-run.json").read_text())
        assert signed_in.sign_in(made["username"], made["password"]).status_code == 302
        assert signed_in.is_in()
        async with four.asking() as asker:
            running = [asyncio.create_task(sequence.run()) for sequence in sequences]
            before = await traffic(asker, model, RATE, 10)
            stop_database(citadel)
            gone = time.monotonic()
            try:
                meanwhile = asyncio.create_task(traffic(asker, model, RATE, AWAY))
                while time.monotonic() < gone + AWAY - 5:
                    status, code, headers = await asked_with(four, unknown, model)
                    assert (status, code) == (503, "auth_unavailable")
                    assert int(headers["retry-after"]) >= 1
                    assert (await asked_with(four, altered(unknown), model))[0] == 401
                    assert (await asked_with(four, known, model))[0] == 200
                    await asyncio.to_thread(check_console, four, signed_in)
                    await asyncio.sleep(3)
                during = await meanwhile
            finally:
                start_database(citadel)
            back = time.monotonic()
            while (found := (await asked_with(four, unknown, model))[:2]) != (401, "invalid_api_key"):
                assert found == (503, "auth_unavailable")
                assert time.monotonic() < back + NORMAL_WITHIN + HELD_UP
            assert (await asked_with(four, four.elsewhere.key(), model))[0] == 200
            assert signed_in.is_in()
            after = await traffic(asker, model, RATE, 5)
            for sequence in sequences:
                sequence.end()
            await asyncio.gather(*running)
    for replies in (before, during, after):
        assert not failed(replies)
    assert p99(during) <= p99(before) + LATER
    recorded_once(citadel, [*before, *during, *after])
    with psycopg.connect(citadel.database_url) as connection:
        for sequence in sequences:
            sequence.check_recorded(connection)
