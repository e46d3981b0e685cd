"""The load generator counts what really happened."""

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from bench import answers
from bench.load import Plan, execute
from bench.measurement import Result
from bench.processes import ROOT
from bench.upstream import Upstream
from bench.workloads import STREAM_CHUNKS
from tests.held_up import HELD_UP

FAILURE = answers.document("500 Internal Server Error", {"error": {"message": "as told"}})

Answer = Callable[[int, bytes], bytes]
"""Gives the n-th answer, counted from 1, to a body; empty to close the connection instead."""


def right(_n: int, body: bytes) -> bytes:
    return answers.completion(answers.question_number(body))


@asynccontextmanager
async def server(answer: Answer, heads: list[bytes] | None = None) -> AsyncIterator[str]:
    """Answers so; puts the heads of the requests into `heads`."""
    seen = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if heads is not None:
                    heads.append(head)
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen += 1
                reply = answer(seen, body)
                if not reply:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


@asynccontextmanager
async def upstream(chunks: int) -> AsyncIterator[str]:
    listener = await asyncio.get_running_loop().create_server(lambda: Upstream(chunks, 0.0), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def load(answer: Answer, **options: object) -> Result:
    async with server(answer) as url:
        return await execute(Plan(url=url, workload="chat", connections=4, **options))  # type: ignore[arg-type]


async def test_counts_what_was_asked_for() -> None:
    result = await load(right, count=200)
    assert (result.requests, result.units, result.errors) == (200, 200, {})
    assert result.rate == pytest.approx(200 / result.seconds)
    assert 0 < result.p50 <= result.p90 <= result.p99 <= result.max


async def test_stops_when_the_time_is_up() -> None:
    result = await load(right, seconds=0.3)
    assert result.requests > 0
    assert 0.25 < result.seconds < 0.3 + HELD_UP


async def test_warm_up_counts_apart() -> None:
    seen = 0

    def count(n: int, body: bytes) -> bytes:
        nonlocal seen
        seen = n
        return right(n, body)

    result = await load(count, count=50, warmup=0.1)
    assert result.requests == 50
    assert result.warmup_requests == seen - 50 > 0


async def test_a_500_is_an_error() -> None:
    result = await load(lambda n, body: FAILURE if n % 10 == 0 else right(n, body), count=200)
    assert result.errors == {"status 500": 20}
    assert (result.requests, result.units, result.failed) == (200, 180, 20)
    assert "as told" in result.first_error


async def test_somebody_elses_answer_is_an_error() -> None:
    result = await load(lambda n, body: right(n, b"#000000000" if n % 20 == 0 else body), count=200)
    assert result.errors == {"wrong content": 10}


async def test_a_lost_connection_is_an_error_and_replaced() -> None:
    result = await load(lambda n, body: b"" if n % 50 == 0 else right(n, body), count=200)
    assert result.errors == {"connection closed": 4}
    assert result.requests == 200


async def test_what_is_not_http_is_an_error() -> None:
    result = await load(lambda n, body: b"hello\r\n\r\n" if n == 7 else right(n, body), count=50)
    assert result.failed == 1
    assert result.requests == 50


async def test_what_signing_takes_is_the_clients_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(_body: bytes) -> bytes:
        time.sleep(0.1)
        return b""

    monkeypatch.setattr("bench.load.signer", lambda *_: slowly)
    async with server(right) as url:
        result = await execute(Plan(url=url, workload="chat-signed", connections=1, count=10))
    assert result.errors == {}
    assert result.p50 < 100


async def test_every_other_request_is_signed_and_compared_with_those_between() -> None:
    seen: list[bytes] = []

    async with server(right, seen) as url:
        plan = Plan(url=url, workload="chat-signed", connections=1, count=10)
        result = await execute(plan, "the-key", "cts_public_secret")
    assert [b"authorization: Bearer the-key" in head for head in seen] == [False, True] * 5
    assert [b"x-citadel-key: public" in head for head in seen] == [True, False] * 5
    assert (result.requests, result.errors) == (10, {})
    assert result.p50 > 0
    assert result.p50_compared > 0


async def test_open_loop_keeps_its_rate() -> None:
    result = await load(right, rate=200.0, seconds=1.0)
    assert result.requests == 200
    assert result.seconds == pytest.approx(1.0, abs=0.15)


async def test_open_loop_charges_a_stall_to_all_who_waited() -> None:
    def stall(n: int, body: bytes) -> bytes:
        if n == 50:
            time.sleep(0.5)  # the whole server stands still for half of the run
        return right(n, body)

    open_loop = await load_apart(stall, rate=200.0, seconds=1.0)
    assert open_loop.requests == 200
    assert open_loop.max >= 450
    assert open_loop.p90 > 200  # about 100 of 200 requests were due while it stood still
    closed_loop = await load_apart(stall, count=200)
    assert closed_loop.p90 < 200  # in a closed loop nobody asks meanwhile, so four requests alone are late


async def load_apart(answer: Answer, **options: object) -> Result:
    """Like ``load``, with the server in a thread of its own, so that its stalls are not ours."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()
    own = asyncio.get_running_loop()

    async def run() -> None:
        async with server(answer) as url:
            own.call_soon_threadsafe(ready.set_result, url)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ended.wait(), own))

    thread = asyncio.create_task(asyncio.to_thread(asyncio.run, run()))
    plan = Plan(url=await ready, workload="chat", connections=4, **options)  # type: ignore[arg-type]
    result = await execute(plan)
    ended.set()
    await thread
    return result


async def test_chunks_of_streams_are_counted() -> None:
    async with upstream(STREAM_CHUNKS) as url:
        result = await execute(Plan(url=url, workload="streams", connections=5, count=20))
    assert result.errors == {}
    assert (result.requests, result.units) == (20, 20 * (STREAM_CHUNKS + 2))


async def test_gaps_of_streams_are_seen() -> None:
    async with upstream(STREAM_CHUNKS) as url:
        result = await execute(Plan(url=url, workload="streams-paced", connections=2, count=2))
    assert 15 < result.gap_max < 200
    assert result.seconds == pytest.approx(STREAM_CHUNKS * 0.02, rel=0.2)


async def test_a_stream_that_ends_early_is_an_error() -> None:
    number = b"0" * answers.NUMBER_DIGITS

    def cut(_n: int, body: bytes) -> bytes:
        events = answers.stream(STREAM_CHUNKS - 1, False)
        own = answers.question_number(body) or number
        return answers.STREAM_HEAD + b"".join(before + own + after for before, after in events) + answers.STREAM_END

    async with server(cut) as url:
        result = await execute(Plan(url=url, workload="streams", connections=2, count=4))
    assert result.errors == {"wrong content": 4}


@pytest.mark.parametrize("workload", ["embeddings", "embeddings-cached", "chat-cacheable", "chat-cached"])
async def test_the_upstream_answers_every_workload(workload: str) -> None:
    async with upstream(STREAM_CHUNKS) as url:
        result = await execute(Plan(url=url, workload=workload, connections=2, count=10))
    assert (result.units, result.errors) == (10, {})


async def test_nobody_there_is_told() -> None:
    with pytest.raises(OSError):
        await execute(Plan(url="http://127.0.0.1:1", workload="chat", count=1))


async def test_nothing_but_errors_has_no_times() -> None:
    result = await load(lambda _n, _body: FAILURE, count=8)
    assert result.errors == {"status 500": 8}
    assert (result.units, result.rate) == (0, 0.0)
    assert math.isnan(result.p50)


async def test_the_command_line_tells_the_same() -> None:
    async with server(lambda _n, _body: FAILURE) as url:
        command = [sys.executable, "-m", "bench.load", url, "chat", "--count", "8"]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    result = msgspec.convert(json.loads(output), Result, strict=False)
    assert result.errors == {"status 500": 8}
    assert math.isnan(result.p99)
