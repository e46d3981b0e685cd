"""Row 16: the processes' clocks are ten minutes off, in both directions, and are set while they run."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import SETTINGS, WORKERS, Four, most_at_once
from tests.held_up import HELD_UP
from tests.instance import running
from tests.orchestration.health.watchers import told

SHIM = Path(__file__).with_name("clock")
OFF = 600
ALL = [*(f"web-{number}" for number in range(1, WORKERS + 1)), "prober", "worker", "beat"]
FIRST = dict(zip(ALL, (OFF, -OFF, 0, OFF, -OFF, 0, OFF), strict=True))
WATCHED = {
    "CITADEL_HEALTH__INTERVAL": "30",
    "CITADEL_HEALTH__FAST_INTERVAL": "2",
    "CITADEL_HEALTH__CONNECT_INTERVAL": "5",
    "CITADEL_HEALTH__HEARTBEAT_INTERVAL": "1",
}
SILENT = 3.0
IN_ORDER = ["health_status_changed", "failover_initiated", "failover_completed", "cluster_rebalanced"]


def put(clocks: Path, name: str, seconds: int) -> None:
    """Sets a clock, in one write."""
    file = os.open(clocks / name, os.O_WRONLY | os.O_CREAT)
    os.pwrite(file, b"%+16d" % seconds, 0)
    os.close(file)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clocks")
    for name, seconds in FIRST.items():
        put(folder, name, seconds)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, clocks: Path) -> Iterator[Elsewhere]:
    settings = SETTINGS | WATCHED | {"PYTHONPATH": str(SHIM), "CLOCKS": str(clocks)}
    with running(tmp_path_factory.mktemp("skewed"), settings) as citadel, Elsewhere.on(citadel) as elsewhere:
        deadline = time.monotonic() + 30
        while missing := [name for name in ALL if not (clocks / f"{name}.set").exists()]:
            assert time.monotonic() < deadline, f"not set: {missing}"
            time.sleep(0.1)
        yield elsewhere


@pytest.fixture
def four(own: Elsewhere, clocks: Path) -> Iterator[Four]:
    for name, seconds in FIRST.items():
        put(clocks, name, seconds)
    four = Four(own.citadel, own)
    with four.stack:
        yield four


@contextlib.asynccontextmanager
async def stepping(clocks: Path) -> AsyncIterator[None]:
    """All clocks jump, again and again, each to another side."""

    async def go_on() -> None:
        turn = 0
        while True:
            for number, name in enumerate(ALL):
                put(clocks, name, (OFF, -OFF, 0)[(turn + number) % 3])
            turn += 1
            await asyncio.sleep(0.7)

    jumping = asyncio.create_task(go_on())
    try:
        yield
    finally:
        jumping.cancel()
        await asyncio.gather(jumping, return_exceptions=True)


async def test_limits_go_by_one_clock(four: Four, model: str) -> None:
    server = four.server(model)
    headers = {"authorization": f"Bearer {four.elsewhere.key(requests_per_minute=20)}"}
    dates, answers = set(), Counter[int]()
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(four.citadel.url, headers=headers, connector=connector) as session:
        for number in range(60):
            body = {"model": model, "messages": [{"role": "user", "content": f"{number}"}]}
            async with session.post("/v1/chat/completions", json=body) as answer:
                answers[answer.status] += 1
                date = parsedate_to_datetime(answer.headers["date"]).timestamp()
                dates.add(round((date - time.time()) / OFF))
                if answer.status == 429:
                    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert len(dates) > 1, "one clock alone was asked"
    assert answers == {200: 20, 429: 40}
    assert len([visit for visit in server.log() if visit.method == "POST"]) == 20


async def test_a_lent_token_is_good_for_all_workers_as_long_as_it_says(four: Four, clocks: Path) -> None:
    connector, dates = aiohttp.TCPConnector(force_close=True), set()
    async with aiohttp.ClientSession(four.citadel.url, connector=connector) as session:

        async def lent(seconds: int) -> str:
            headers = {"authorization": f"Bearer {key}"}
            async with session.post("/api/v1/auth/token", json={"expires_in": seconds}, headers=headers) as answer:
                assert answer.status == 200
                return str((await answer.json())["access_token"])

        async def used(token: str) -> int:
            async with session.get("/v1/models", headers={"authorization": f"Bearer {token}"}) as answer:
                date = parsedate_to_datetime(answer.headers["date"]).timestamp()
                dates.add(round((date - time.time()) / OFF))
                return answer.status

        key = four.elsewhere.key()
        tokens = [await lent(60) for _ in range(12)]
        assert Counter([await used(token) for token in tokens * 6]) == {200: 72}
        assert dates == {-1, 0, 1}, "clocks that nobody asked"
        async with stepping(clocks):
            stepped = [await lent(60) for _ in range(12)]
            for _ in range(4):
                assert Counter([await used(token) for token in tokens + stepped]) == {200: 24}
                await asyncio.sleep(0.5)
        short = [await lent(2) for _ in range(12)]
        await asyncio.sleep(3 + HELD_UP)
        assert Counter([await used(token) for token in short * 2]) == {401: 24}


async def test_places_are_exact_and_nothing_is_cut_when_clocks_jump(four: Four, clocks: Path, model: str) -> None:
    server = four.server(model, max_concurrent=2, behave=["slow_start 60"])
    streamed = four.server(f"{model}-stream", tokens=30, behave=["slow_chunks 200"])
    async with stepping(clocks), four.asking() as client:
        streams = [asyncio.create_task(client.chat(f"{model}-stream", stream=True)) for _ in range(8)]
        replies = await client.paced(model, 15, 6)
        whole = await asyncio.gather(*streams)
    assert Counter(reply.status for reply in replies) == {200: 90}
    assert max(reply.seconds for reply in replies) < 3 + HELD_UP
    assert most_at_once(server) == 2
    assert all(reply.body.endswith(b"data: [DONE]\n\n") for reply in whole)
    assert {visit.ended for visit in streamed.log() if visit.method == "POST"} == {"completed"}


async def test_who_sends_heartbeats_stays_and_who_is_silent_departs_in_time(
    four: Four, clocks: Path, model: str
) -> None:
    server = four.server(model)
    headers = {"authorization": f"Bearer {four.citadel.admin_key}"}

    def departures() -> int:
        return [kind for kind, _, _ in told(four.citadel, server.server_id)].count("server_departed")

    connector = aiohttp.TCPConnector(force_close=True)
    async with stepping(clocks), aiohttp.ClientSession(four.citadel.url, headers=headers, connector=connector) as own:
        for _ in range(8):
            async with own.post(f"/orchestration/servers/{server.server_id}/heartbeat") as answer:
                assert answer.status == 200
            await asyncio.sleep(0.8)
        silent_since = time.monotonic() - 0.8
        assert departures() == 0
        while not departures():
            assert time.monotonic() < silent_since + SILENT + 4 + HELD_UP
            await asyncio.sleep(0.1)
        assert time.monotonic() - silent_since > SILENT - 0.2


@pytest.mark.faults
async def test_a_death_is_found_and_undone_in_time(four: Four, clocks: Path, model: str) -> None:
    dies, lives = four.server(model), four.server(model)

    def kinds() -> list[str]:
        return [kind for kind, _, _ in told(four.citadel, dies.server_id) if kind in IN_ORDER]

    async with stepping(clocks), four.asking() as client:
        await client.paced(model, 10, 2)
        dies.kill()
        died = time.monotonic()
        replies = await client.paced(model, 10, 5)
        while kinds() != IN_ORDER:
            assert time.monotonic() < died + 15 + HELD_UP, kinds()
            await asyncio.sleep(0.1)
        dies.restart()
        await four.until_listed(dies, "healthy", 40)
        await asyncio.sleep(5)
        back = await client.paced(model, 10, 4)
    assert {reply.status for reply in [*replies, *back]} == {200}
    assert {reply.server for reply in replies[10:]} == {lives.server_id}
    served = Counter(reply.server for reply in back)
    assert 12 <= served[dies.server_id] <= 28, "the slow start is over"
