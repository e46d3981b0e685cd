"""Row 11: JSON that hurts to decode: deep, long, full of keys, out of range, no UTF-8."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.client import CHAT, EMBEDDINGS, POSTS, Client, Reply, asking, body_of, request_head, wired
from tests.faults.conftest import Pair
from tests.faults.invariants import Case
from tests.held_up import slowness
from tests.instance import Instance

MEGABYTE = 1024 * 1024
LARGEST = 10 * MEGABYTE
MOST_INPUTS = 2048
HELD_AT_MOST = 0.1
CPU_A_MEGABYTE = 0.030
CPU_OF_A_REQUEST = 0.005
"""What reading, refusing and logging cost whatever the size, and the pings meanwhile."""
TRIES = 3
"""A bound must hold once: others may have the processor meanwhile."""


def filled(text: bytes) -> bytes:
    """A text of ten megabytes of that."""
    return text * (LARGEST // len(text))


def deep(levels: int, opening: bytes = b"[", closing: bytes = b"]", inner: bytes = b"") -> bytes:
    return b'{"x":' + opening * (levels - 1) + inner + closing * (levels - 1) + b"}"


def keys(count: int) -> bytes:
    return b"{%b}" % b",".join(b'"%x":0' % number for number in range(count))


# What is wrong with it, and the code that says so.
SMALL = {
    "65 deep": (deep(65), "json_too_deep"),
    "65 objects deep": (deep(65, b'{"a":', b"}", b"0"), "json_too_deep"),
    "NaN": (b'{"x":NaN}', "invalid_json"),
    "Infinity": (b'{"x":-Infinity}', "invalid_json"),
    "1e400": (b'{"x":1e400}', "invalid_json"),
    "-1e400": (b'{"x":[-1E+400]}', "invalid_json"),
    "400 digits": (b'{"x":%b}' % (b"9" * 400), "invalid_json"),
    "lone surrogate": (rb'{"x":"\ud800"}', "invalid_json"),
    "lone low surrogate": (rb'{"x":"\udc00x"}', "invalid_json"),
    "surrogates in the wrong order": (rb'{"x":"\udc00\ud800"}', "invalid_json"),
    "surrogate as a key": (rb'{"\ud83d":1}', "invalid_json"),
    "surrogate in bytes": (b'{"x":"\xed\xa0\x80"}', "invalid_json"),
    "bad UTF-8": (b'{"x":"\xff"}', "invalid_json"),
    "overlong UTF-8": (b'{"x":"\xc0\xaf"}', "invalid_json"),
    "half a character": (b'{"x":"\xe5\xad', "invalid_json"),
    "UTF-16": ('{"x":1}'.encode("utf-16"), "invalid_json"),
    "byte order mark": (b'\xef\xbb\xbf{"x":1}', "invalid_json"),
    "not closed": (b'{"x":[1,2', "invalid_json"),
    "control character": (b'{"x":"\x01"}', "invalid_json"),
    "bad escape": (rb'{"x":"\q"}', "invalid_json"),
    "single quotes": (b"{'x':1}", "invalid_json"),
    "trailing comma": (b'{"x":1,}', "invalid_json"),
    "leading zero": (b'{"x":01}', "invalid_json"),
}
LARGE = {
    "100,000 deep": (deep(100_000), "json_too_deep"),
    "ten megabytes of [": (filled(b"["), "json_too_deep"),
    'ten megabytes of {"a":': (filled(b'{"a":'), "json_too_deep"),
    "a million keys": (keys(1_000_000), "json_too_large"),
    "a million zeros": (b'{"x":[%b0]}' % (b"0," * 999_999), "json_too_large"),
    "ten megabytes of ,": (filled(b","), "json_too_large"),
    "many empty lists": (b'{"x":[%b[]]}' % (b"[]," * 1_000_000), "json_too_large"),
    "ten megabytes of digits": (b'{"x":%b}' % filled(b"9")[9:], "invalid_json"),
    "ten megabytes of quotes": (filled(b'"')[1:], "json_too_large"),
    "ten megabytes of backslashes": (filled(b"\\"), "invalid_json"),
    "ten megabytes of spaces": (filled(b" "), "invalid_json"),
    "ten megabytes of bad bytes": (filled(b"\xff"), "invalid_json"),
    "a bad byte at the end": (b'{"x":"%b\xff"}' % filled(b"x")[20:], "invalid_json"),
    "many surrogates": (b'{"x":"%b"}' % filled(rb"\ud800")[20:], "invalid_json"),
    "as many numbers that are slow to decode": (b'{"x":[%b0]}' % (b"1e300," * 99_000), "json_too_large"),
    "as many that are next to nothing": (b'{"x":[%b0]}' % (b"5e-324," * 99_000), "json_too_large"),
    "many escaped pairs, one alone": (rb'{"x":"%b\ud800"}' % filled(rb"\ud83d\ude00")[40:], "invalid_json"),
    "long strings of brackets": (b'{"x":"%b"' % filled(b"[{")[20:], "invalid_json"),
}
TEXTS = {
    "plain": b"x",
    "brackets": b"[{",
    "quotes": rb"\"",
    "quotes and backslashes": rb"\"\\",
    "ends of lines": rb"\n",
    "what only looks like numbers": b"1e300,",
    "pairs of surrogates": rb"\ud83d\ude00",
    "characters of four bytes": "😀".encode(),
}
GOOD = {
    "64 deep": deep(64),
    "99,000 numbers": b'{"x":[%b0]}' % (b"1.25e-7," * 99_000),
    "900 numbers of extreme size": b'{"x":[%b0]}' % (b"1e300," * 900),
    **{name: b'{"x":"%b"}' % filled(text)[: -1000 * len(text)] for name, text in TEXTS.items()},
}


def within(field: bytes, path: str, model: str, **more: Any) -> bytes:
    """A good request for `path` with one more field, whose name and value are those of `field`."""
    return json.dumps(body_of(path, model, **more))[:-1].encode() + b"," + field[1:]


def largest(path: str, model: str, text: bytes) -> bytes:
    """A good request for `path` of ten megabytes exactly, cacheable and like no other: its text is all of `text`.

    The answer is short: it is the body that is to be measured.
    """
    more = {"dimensions": 8} if path == EMBEDDINGS else {"temperature": 0}
    whole = json.dumps(body_of(path, model, "TEXT", **more, user=secrets.token_hex(8))).encode()
    content = b'"%b"' % (text * ((LARGEST - 1000) // len(text)))
    if path == EMBEDDINGS:
        one = text * (LARGEST // MOST_INPUTS // len(text) - 10)
        content = b"[%b]" % b",".join(b'"%d %b"' % (number, one) for number in range(MOST_INPUTS))
    return whole.replace(b'"TEXT"', content).ljust(LARGEST)


@asynccontextmanager
async def pings(case: Case, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[list[float]]:
    """How long others wait: the times of answers on another connection, one after the other."""
    times: list[float] = []
    ready = asyncio.Event()
    async with aiohttp.ClientSession(case.citadel.url) as session:

        async def ping() -> None:
            while True:
                begun = clock()
                async with session.get("/health/live") as answer:
                    assert answer.status == 200
                times.append(clock() - begun)
                ready.set()
                await asyncio.sleep(0.005)

        pinging = asyncio.create_task(ping())
        await ready.wait()
        times.clear()
        yield times
        pinging.cancel()


def cpu_seconds(case: Case) -> float:
    """What the worker's threads have computed, to the nanosecond."""
    threads = Path(f"/proc/{case.citadel.worker}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@pytest.mark.parametrize(("body", "code"), SMALL.values(), ids=SMALL)
async def test_it_is_refused_alike_everywhere(client: Client, body: bytes, code: str) -> None:
    """By itself, and as a field that nobody knows of a request that is good otherwise."""
    for path in POSTS:
        for sent in (body, within(body, path, "smollm2:135m")) if body.startswith(b"{") else (body,):
            check_refused(await client.ask(path, sent, recorded=False), code)


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
async def test_a_stranger_is_told_that_he_is_one(citadel: Instance, apart: bool) -> None:
    """Whether the body has come with its head, which is the network's to say, or after it."""
    body = b'{"x":"\xff"}'
    for path in POSTS:
        async with wired(citadel.url) as wire:
            head = request_head(path, {"content-length": str(len(body))})
            await wire.send(head if apart else head + body)
            if apart:
                await asyncio.sleep(0.05)
                await wire.send(body)
            assert (await wire.answer(2.0))[0] == 401


@pytest.mark.parametrize("after", [b"{}", b"\x00", b"x", b","])
async def test_nothing_may_follow(client: Client, after: bytes) -> None:
    for path in POSTS:
        body = json.dumps(body_of(path, "smollm2:135m")).encode() + after
        check_refused(await client.ask(path, body, recorded=False), "invalid_json")


def check_refused(reply: Reply, code: str) -> None:
    assert reply.status == 400, reply.body
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)


@pytest.mark.parametrize(("body", "code"), LARGE.values(), ids=LARGE)
async def test_large_ones_cost_little(case: Case, client: Client, body: bytes, code: str) -> None:
    bound = slowness() * (CPU_OF_A_REQUEST + CPU_A_MEGABYTE * max(1.0, len(body) / MEGABYTE))
    for path in POSTS:
        spent: list[float] = []
        while not spent or (min(spent) > bound and len(spent) < TRIES):
            before = cpu_seconds(case)
            check_refused(await client.ask(path, body, recorded=False), code)
            spent.append(cpu_seconds(case) - before)
        assert min(spent) <= bound, f"{min(spent) * 1000:.0f} ms for {len(body) / MEGABYTE:.1f} MB"


@pytest.mark.parametrize(("body", "code"), LARGE.values(), ids=LARGE)
async def test_large_ones_hold_nobody_up(case: Case, client: Client, body: bytes, code: str) -> None:
    at_most = HELD_AT_MOST * slowness()
    longest = [at_most]
    while min(longest) >= at_most and len(longest) <= TRIES:
        async with pings(case) as times:
            check_refused(await client.ask(CHAT, body, recorded=False), code)
        longest.append(max(times, default=0.0))
    assert min(longest) < at_most, f"others waited {longest[1:]}"


@pytest.mark.parametrize("field", GOOD.values(), ids=GOOD)
async def test_what_only_looks_bad_passes(pair: Pair, client: Client, field: bytes) -> None:
    for path in POSTS:
        for more in ({}, {"temperature": 0}):  # which is cacheable, and so is looked at more closely
            body = within(field, path, pair.model, **more if path != EMBEDDINGS else {})
            reply = await client.ask(path, body)
            assert reply.status == 200, reply.body[:300]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("path", POSTS)
async def test_good_ones_of_ten_megabytes_cost_little_and_hold_nobody_up(
    pair: Pair, case: Case, client: Client, path: str, text: bytes
) -> None:
    """How long others wait is told by what the worker computes meanwhile: the wait on a machine with a core for it."""
    case.check_memory = path != EMBEDDINGS  # thousands of texts leave holes in the heap, for the next of their kind
    slow = slowness()
    at_most, bound = HELD_AT_MOST * slow, slow * (CPU_OF_A_REQUEST + CPU_A_MEGABYTE * LARGEST / MEGABYTE)
    held, spent = [at_most], [bound * 2]
    while (min(held) >= at_most or min(spent) > bound) and len(held) <= TRIES:
        body = largest(path, pair.model, text)
        async with pings(case, partial(cpu_seconds, case)) as times:
            before = cpu_seconds(case)
            reply = await client.ask(path, body)
            spent.append(cpu_seconds(case) - before)
        assert reply.status == 200, reply.body[:300]
        held.append(max(times, default=0.0))
    assert min(held) < at_most, f"others waited {held[1:]}"
    assert min(spent) <= bound, f"{min(spent) * 1000:.0f} ms for ten megabytes"


async def test_many_at_once_leave_the_others_their_turn(case: Case, client: Client) -> None:
    """Each part of each body is short, so the others' answers come between them."""
    async with asking(case, client.key) as crowd, pings(case) as times:
        bodies = [LARGE[name][0] for name in ("ten megabytes of ,", "a million keys", "many surrogates")] * 4
        replies = await asyncio.gather(*(crowd.ask(CHAT, body, recorded=False) for body in bodies))
    assert {reply.status for reply in replies} == {400}
    assert sorted(times)[len(times) // 2] < HELD_AT_MOST * slowness()
