"""Row 10: a body of one byte more than 10 MB: with its length told, in chunks, without a key. Exactly 10 MB passes."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.client import CHAT, COMPLETIONS, EMBEDDINGS, POSTS, Client, Wire, request_head, wired
from tests.faults.conftest import Pair
from tests.faults.invariants import Case

LARGEST = 10 * 1024 * 1024
PIECE = 1 << 16
MOST_WRITTEN = 1 << 20
"""Bytes that the worker's log may take meanwhile."""
OTHERS = ("/orchestration/servers/register", "/v1/nowhere", "/admin/login/", "/nowhere")


@pytest.fixture(autouse=True)
def nothing_on_disk(citadel: object, case: Case) -> Iterator[None]:
    """The worker writes no body to a file, here or in a temporary folder."""
    worker = psutil.Process(case.citadel.worker)
    files, written = _files(worker), worker.io_counters().write_bytes
    yield
    assert _files(worker) <= files
    assert worker.io_counters().write_bytes - written < MOST_WRITTEN


def _files(worker: psutil.Process) -> set[str]:
    """What it holds open, its own counters apart."""
    return {file.path for file in worker.open_files() if "/run/metrics/" not in file.path}


def body_of_size(path: str, model: str, size: int) -> bytes:
    """A request that is good but for its size."""
    texts = {CHAT: {"messages": [{"role": "user", "content": ""}]}, COMPLETIONS: {"prompt": ""}}
    body = {"model": model, **texts.get(path, {"input": "a"}), "user": ""}
    return json.dumps({**body, "user": "x" * (size - len(json.dumps(body)))}).encode()


def headers_of(case: Case, key: str | None, **more: str) -> dict[str, str]:
    identity = f"{case.prefix}-{time.monotonic_ns()}"
    case.refused.add(identity)
    case.failed.add(identity)
    own = {"x-request-id": identity, **{name.replace("_", "-"): value for name, value in more.items()}}
    return {**own, "authorization": f"Bearer {key}"} if key else own


async def check_refused(case: Case, wire: Wire, within: float = 2.0) -> None:
    status, headers, body = await wire.answer(within)
    case.errors.append(body)
    assert status == 413
    assert headers["connection"] == "close"
    error = json.loads(body)["error"]
    assert error == {**error, "type": "invalid_request_error", "code": "request_too_large", "param": None}


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("path", [*POSTS, *OTHERS])
async def test_a_length_that_is_too_large_is_refused_before_anything_is_read(
    case: Case, client: Client, path: str, with_key: bool
) -> None:
    """Not a byte of the body is sent, and the answer is there."""
    headers = headers_of(case, client.key if with_key else None, content_length=str(LARGEST + 1))
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(path, headers))
        await check_refused(case, wire)


async def test_who_asks_before_sending_is_told_no(case: Case, client: Client) -> None:
    """`expect: 100-continue`: the answer is 413 and no invitation to send."""
    headers = headers_of(case, client.key, content_length=str(LARGEST + 1), expect="100-continue")
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(CHAT, headers))
        await check_refused(case, wire)


@pytest.mark.parametrize("length", ["99999999999999999999", "9" * 5000, "-1", "10485761x", "1e3"])
async def test_a_length_that_is_none_is_refused(case: Case, client: Client, length: str) -> None:
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(CHAT, headers_of(case, client.key, content_length=length)))
        status, _ = await wire.head(2.0)
        assert status in (400, 413)


@pytest.mark.parametrize("with_key", [True, False], ids=["key", "no key"])
@pytest.mark.parametrize("path", [*POSTS, *OTHERS])
async def test_chunks_are_refused_at_the_first_byte_too_many(
    case: Case, client: Client, path: str, with_key: bool
) -> None:
    headers = headers_of(case, client.key if with_key else None, transfer_encoding="chunked")
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(path, headers))
        for _ in range(LARGEST // PIECE):
            await wire.send(b"%x\r\n%b\r\n" % (PIECE, b"x" * PIECE))
        with pytest.raises(TimeoutError):
            await wire.head(0.2)  # ten megabytes are none too many
        await wire.send(b"1\r\nx\r\n")
        await check_refused(case, wire)


async def test_a_body_where_none_belongs_is_refused_too(case: Case) -> None:
    """Django would write it to the disk."""
    head = request_head("/admin/login/", headers_of(case, None, transfer_encoding="chunked"))
    async with wired(case.citadel.url) as wire:
        await wire.send(head.replace(b"POST", b"GET", 1))
        for _ in range(LARGEST // PIECE):
            await wire.send(b"%x\r\n%b\r\n" % (PIECE, b"x" * PIECE))
        await wire.send(b"1\r\nx\r\n")
        await check_refused(case, wire)


async def test_an_endless_body_is_cut_off(case: Case, client: Client) -> None:
    """Who goes on sending after the answer is listened to no longer than for it to arrive."""
    headers = headers_of(case, client.key, transfer_encoding="chunked")
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(CHAT, headers))

        async def send_for_ever() -> None:
            while not wire.writer.transport.is_closing():
                await wire.send(b"%x\r\n%b\r\n" % (PIECE, b"x" * PIECE))
                await asyncio.sleep(0.001)

        sending = asyncio.create_task(send_for_ever())
        await check_refused(case, wire, within=10.0)
        await asyncio.wait_for(sending, 5.0)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("coding", ["length", "chunked"])
async def test_exactly_ten_megabytes_pass(case: Case, pair: Pair, client: Client, path: str, coding: str) -> None:
    body = body_of_size(path, pair.model, LARGEST)
    assert len(body) == LARGEST
    headers = {"authorization": f"Bearer {client.key}", "x-request-id": client.identity()}
    async with wired(case.citadel.url) as wire:
        if coding == "length":
            await wire.send(request_head(path, {**headers, "content-length": str(LARGEST)}) + body)
        else:
            await wire.send(request_head(path, {**headers, "transfer-encoding": "chunked"}))
            for start in range(0, LARGEST, PIECE):
                await wire.send(b"%x\r\n%b\r\n" % (PIECE, body[start : start + PIECE]))
            await wire.send(b"0\r\n\r\n")
        status, _, answer = await wire.answer()
    assert status == 200, answer
    [seen] = pair.first.log()
    assert seen.body_bytes == LARGEST


async def test_one_byte_more_reaches_no_server(case: Case, pair: Pair, client: Client) -> None:
    headers = headers_of(case, client.key, content_length=str(LARGEST + 1))
    async with wired(case.citadel.url) as wire:
        await wire.send(request_head(CHAT, headers))
        with suppress(ConnectionError):
            await wire.send(body_of_size(CHAT, pair.model, LARGEST + 1))
        await check_refused(case, wire)
    assert not pair.first.calls()
    assert not pair.second.calls()


async def test_twenty_at_once_leave_no_trace_in_memory(case: Case, client: Client, tmp_path: Path) -> None:
    """Refused bodies hold memory only while they come: 200 MB pass through."""

    async def send_too_much() -> None:
        headers = headers_of(case, None, transfer_encoding="chunked")
        async with wired(case.citadel.url) as wire:
            await wire.send(request_head(EMBEDDINGS, headers))
            for _ in range(LARGEST // PIECE):
                await wire.send(b"%x\r\n%b\r\n" % (PIECE, b"x" * PIECE))
            await wire.send(b"1\r\nx\r\n")
            await check_refused(case, wire, within=10.0)

    await asyncio.gather(*(send_too_much() for _ in range(20)))
