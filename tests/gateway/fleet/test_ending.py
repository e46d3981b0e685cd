"""Row 20: a worker gets SIGTERM while it works, and nobody loses anything."""

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import psutil
import psycopg
import pytest

from tests.command import manage
from tests.faults.client import Wire, request_head, unchunked, wired
from tests.fleet.control import Fleet
from tests.gateway.elsewhere import Elsewhere
from tests.gateway.fleet.conftest import SETTINGS, WORKERS, Four
from tests.held_up import HELD_UP
from tests.instance import Instance, running, whole_lines

CHAT = "/v1/chat/completions"
DRAIN = 5.0
SOON = 0.5
PAUSE = 0.2
"""Seconds between two requests of one client, at most."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    settings = SETTINGS | {"CITADEL_TIMEOUTS__DRAIN": str(DRAIN), "CITADEL_TIMEOUTS__STREAM_SILENCE": "1"}
    with running(tmp_path_factory.mktemp("ending"), settings) as citadel, Elsewhere.on(citadel) as elsewhere:
        yield elsewhere


@pytest.fixture
def four(own: Elsewhere) -> Iterator[Four]:
    """As the others have it, with time limits that a test can wait for."""
    four = Four(own.citadel, own)
    with four.stack:
        yield four


def worker(citadel: Instance, number: int) -> psutil.Process:
    return psutil.Process(int((citadel.home / f"run/web-{number}.pid").read_text()))


def end(process: psutil.Process) -> float:
    """Tells a worker to end, and gives the time."""
    process.send_signal(signal.SIGTERM)
    return time.monotonic()


async def gone(process: psutil.Process, within: float) -> None:
    deadline = time.monotonic() + within
    with contextlib.suppress(psutil.NoSuchProcess):  # between the two questions
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the worker is still there"
            await asyncio.sleep(0.02)


async def serves_again(citadel: Instance, number: int, before: psutil.Process, within: float = 60.0) -> None:
    """Waits until the supervisor has seen a worker end well, started it anew, and that has read the configuration."""
    log, deadline = citadel.home / f"logs/web-{number}.log", time.monotonic() + within
    pid = citadel.home / f"run/web-{number}.pid"
    while not pid.exists() or int(pid.read_text()) == before.pid or not _is_loaded(log):
        assert time.monotonic() < deadline, f"web-{number} is not there again"
        await asyncio.sleep(0.05)
    lines = (citadel.home / "logs/supervisor.log").read_text().splitlines()
    [*_, ended] = [line for line in lines if f"web-{number} ended" in line]
    assert "ended with exit code 0; it starts again in 0.25 s" in ended


def _is_loaded(log: Path) -> bool:
    events = [json.loads(line)["event"] for line in whole_lines(log.read_bytes())]
    ends = [place for place, event in enumerate(events) if event == "draining"]
    return bool(ends) and "configuration_loaded" in events[ends[-1] :]


@asynccontextmanager
async def met(citadel: Instance, process: psutil.Process) -> AsyncIterator[Wire]:
    """A kept connection to this one of the workers."""
    while True:
        async with wired(citadel.url) as wire:
            await wire.send(b"GET /health/live HTTP/1.1\r\nhost: citadel\r\n\r\n")
            status, _, _ = await wire.answer()
            assert status == 200
            own = wire.writer.get_extra_info("sockname")[1]
            if any(connection.raddr and connection.raddr.port == own for connection in process.net_connections("tcp")):
                yield wire
                return


async def ask(wire: Wire, key: str, model: str, text: str = "Hello", **more: object) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()
    head = request_head(CHAT, {"authorization": f"Bearer {key}", "content-length": str(len(body))})
    await wire.send(head + body)


async def test_it_answers_on_the_connections_that_it_has_and_takes_no_new_ones(four: Four, model: str) -> None:
    four.server(model).behave("slow_chunks 150")
    ending, key = worker(four.citadel, 1), four.elsewhere.key()
    async with (
        met(four.citadel, ending) as streaming,
        met(four.citadel, ending) as asked,
        met(four.citadel, ending) as kept,
        met(four.citadel, ending) as probing,
    ):
        await ask(streaming, key, model, stream=True)
        status, headers = await streaming.head()
        assert (status, headers.get("connection")) == (200, None)
        await ask(asked, key, model, "[[behave:slow_start 1500]]")
        await asyncio.sleep(SOON)
        told = end(ending)
        await probing.send(b"GET /health/ready HTTP/1.1\r\nhost: citadel\r\n\r\n")
        status, headers, body = await probing.answer()
        assert (status, json.loads(body)) == (503, {"status": "draining"})
        await asyncio.sleep(SOON)
        await ask(kept, key, model)
        for wire in (kept, asked):
            status, headers, _ = await wire.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await wire.rest(1.0 + HELD_UP) == b""
        stream = await streaming.reader.readuntil(b"0\r\n\r\n")
        assert unchunked(stream).endswith(b"data: [DONE]\n\n")
        await ask(streaming, key, model)  # its head had not said that the connection would be closed
        status, headers, _ = await streaming.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert not any(
            laddr.laddr.port == int(four.citadel.url.rpartition(":")[2]) and laddr.status == psutil.CONN_LISTEN
            for laddr in ending.net_connections("tcp")
        )
        await gone(ending, DRAIN + 5 + HELD_UP)
        assert time.monotonic() - told < DRAIN + 5 + HELD_UP
    await serves_again(four.citadel, 1, ending)


async def test_what_takes_too_long_is_told_so(four: Four, model: str) -> None:
    server = four.server(model)
    server.behave("slow_chunks 1000")
    ending, key = worker(four.citadel, 2), four.elsewhere.key()
    async with (
        met(four.citadel, ending) as streaming,
        met(four.citadel, ending) as silent,
        met(four.citadel, ending) as plain,
    ):
        await ask(streaming, key, model, stream=True)
        await ask(silent, key, model, "[[behave:hang]]", stream=True)
        await ask(plain, key, model, "[[behave:hang]]")
        await streaming.head()
        await silent.head()
        told = end(ending)
        status, headers, body = await plain.answer(DRAIN + 5 + HELD_UP)
        assert (status, json.loads(body)["error"]["code"]) == (503, "server_draining")
        assert headers["connection"] == "close"
        assert int(headers["retry-after"]) >= 1
        for wire in (streaming, silent):
            stream = unchunked(await wire.rest())
            last = stream.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: ")
            assert json.loads(last)["error"]["code"] == "server_draining"
            assert b"[DONE]" not in stream
        assert DRAIN - 0.5 < time.monotonic() - told < DRAIN + 2 + HELD_UP
        await gone(ending, 5 + HELD_UP)
    [streamed] = [seen for seen in server.log() if seen.method == "POST" and "hang" not in seen.body]
    assert streamed.ended == "client_closed"
    with psycopg.connect(four.citadel.database_url) as connection:
        outcomes = connection.execute("SELECT outcome FROM audit_record WHERE model = %s", (model,)).fetchall()
    assert Counter(outcomes) == {("server_draining",): 3}
    await serves_again(four.citadel, 2, ending)


async def test_an_idle_connection_holds_nobody_up(four: Four) -> None:
    ending = worker(four.citadel, 3)
    async with met(four.citadel, ending) as idle, wired(four.citadel.url):
        end(ending)
        assert await idle.rest(DRAIN + 2 + HELD_UP) == b""
        await gone(ending, 3 + HELD_UP)
    await serves_again(four.citadel, 3, ending)


@pytest.mark.faults
@pytest.mark.parametrize("already_ending", [False, True])
async def test_when_all_of_citadel_ends_idle_connections_end_at_once(tmp_path: Path, already_ending: bool) -> None:
    """As by Ctrl-C, when nobody takes another request; what runs is answered all the same. A worker that was ending by
    itself goes on with that.
    """
    settings = SETTINGS | {"CITADEL_SERVER__WORKERS": "1"}
    with Fleet.start(models=["m"]) as server, running(tmp_path, settings) as citadel:
        assert manage(citadel.home, "server", "add", "s", server.url).returncode == 0
        citadel.settle()
        ending = worker(citadel, 1)
        async with (
            met(citadel, ending) as idle,
            wired(citadel.url) as silent,
            met(citadel, ending) as asked,
            met(citadel, ending) as streaming,
        ):
            await ask(asked, citadel.admin_key, "m", "[[behave:slow_start 1500]]")
            await ask(streaming, citadel.admin_key, "m", "[[behave:slow_chunks 100]]", stream=True)
            await streaming.head()
            await asyncio.sleep(SOON)
            if already_ending:
                end(ending)
                await asyncio.sleep(SOON)
            psutil.Process(int((citadel.home / "run/supervisor.pid").read_text())).send_signal(signal.SIGINT)
            for wire in (idle, silent):
                assert await wire.rest(0.5 + HELD_UP) == b""
            status, headers, _ = await asked.answer()
            assert (status, headers["connection"]) == (200, "close")
            stream = await streaming.reader.readuntil(b"0\r\n\r\n")
            assert unchunked(stream).endswith(b"data: [DONE]\n\n")
            answered = time.monotonic()
            assert await streaming.rest(0.5 + HELD_UP) == b""
            await gone(ending, 3 + HELD_UP)
            assert time.monotonic() - answered < 2 + HELD_UP


async def _roll(four: Four, model: str, rounds: int, at_once: int, least: int) -> None:
    """One worker after the other, `rounds` times, while clients of two kinds use their connections as they do."""
    for _ in range(2):
        four.server(model, tokens=4)
    key, ended, answers = four.elsewhere.key(), asyncio.Event(), Counter[object]()
    own = {"authorization": f"Bearer {key}"}
    prefix = f"roll-{secrets.token_hex(4)}"
    numbers = itertools.count()

    async def go_on(post: Callable[[dict[str, object], dict[str, str]], Awaitable[tuple[int, bytes]]]) -> None:
        while not ended.is_set() or answers.total() < least:
            number = next(numbers)
            body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": number % 4 == 0}
            try:
                status, answer = await post(body, {**own, "x-request-id": f"{prefix}-{number}"})
            except (aiohttp.ClientError, httpx.HTTPError, OSError) as error:
                answers[repr(error)] += 1
                continue
            if number % 4 == 0 and status == 200:
                answers["stream" if answer.endswith(b"data: [DONE]\n\n") else answer[-200:]] += 1
            else:
                answers[status] += 1
            await asyncio.sleep(PAUSE * random.random())

    async with (
        aiohttp.ClientSession(four.citadel.url, connector=aiohttp.TCPConnector(limit=0)) as session,
        httpx.AsyncClient(base_url=four.citadel.url, timeout=30) as library,
    ):

        async def by_aiohttp(body: dict[str, object], headers: dict[str, str]) -> tuple[int, bytes]:
            async with session.post(CHAT, json=body, headers=headers) as answer:
                return answer.status, await answer.read()

        async def by_httpx(body: dict[str, object], headers: dict[str, str]) -> tuple[int, bytes]:
            answer = await library.post(CHAT, json=body, headers=headers)
            return answer.status_code, answer.content

        clients = [asyncio.create_task(go_on(post)) for post in (by_aiohttp, by_aiohttp, by_httpx) * at_once]
        for _ in range(rounds):
            for number in range(1, WORKERS + 1):
                ending = worker(four.citadel, number)
                end(ending)
                await gone(ending, DRAIN + 5 + HELD_UP)
                await serves_again(four.citadel, number, ending)
        ended.set()
        await asyncio.gather(*clients)
    assert answers.keys() == {200, "stream"}, answers
    assert answers.total() >= least
    count = "SELECT count(*), count(DISTINCT request_id) FROM audit_record WHERE starts_with(request_id, %s)"
    with psycopg.connect(four.citadel.database_url, autocommit=True) as connection:
        deadline = time.monotonic() + 5 + HELD_UP
        while (told := connection.execute(count, (prefix,)).fetchone()) != (answers.total(),) * 2:
            assert time.monotonic() < deadline, (told, answers)
            await asyncio.sleep(0.1)


@pytest.mark.faults
async def test_no_request_is_lost_when_one_worker_after_the_other_starts_anew(four: Four, model: str) -> None:
    await _roll(four, model, 1, 4, 1_000)


@pytest.mark.faults
async def test_ten_rolling_restarts_lose_none_of_ten_thousand_requests(four: Four, model: str) -> None:
    await _roll(four, model, 10, 4, 10_000)
