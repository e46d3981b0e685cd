"""gzip for whole answers over 1 KB where the client accepts it, and never for streams."""

import gzip
import json
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, EMBEDDINGS, Client, Reply, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]
ACCEPT = [
    "gzip",
    "gzip, deflate, br, zstd",
    "deflate, gzip;q=1.0",
    "GZIP",
    "x-gzip",
    "*",
    "br, *;q=0.1",
    "gzip;q=0.5",
    "gzip ; Q=0.001",
    "identity;q=0.5, gzip",
    "identity;q=0, *",
]
REFUSE = [
    "identity",
    "deflate",
    "gzip;q=0",
    "br, gzip; q=0.0",
    "gzip;q=0.000, *",
    "*;q=0",
    "notgzip",
    "gzip2",
    "identity, gzip;q=0.5",
    "gzip;q=much",
    "gzip;level=9",
    ", ,",
    "",
]
LONG, SHORT = "hello " * 400, "hello"


@pytest.fixture
async def raw(citadel: Instance) -> AsyncIterator[Client]:
    """Gives the bytes as they came."""
    headers = {"authorization": f"Bearer {citadel.key()}"}
    async with aiohttp.ClientSession(
        citadel.url, headers=headers, auto_decompress=False, skip_auto_headers=["accept-encoding"]
    ) as session:
        yield Client(session)


def plain(reply: Reply) -> bytes:
    return gzip.decompress(reply.body) if reply.headers.get("content-encoding") == "gzip" else reply.body


@pytest.mark.parametrize("accepts", ACCEPT)
async def test_a_long_answer_is_packed_for_who_accepts_it(fleet: Start, model: str, raw: Client, accepts: str) -> None:
    fleet(model)
    body = chat(model, LONG, x_echo=True)
    unpacked = await raw.post(body)
    assert "content-encoding" not in unpacked.headers
    assert unpacked.headers["vary"] == "accept-encoding"
    packed = await raw.post(body, accept_encoding=accepts)
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert int(packed.headers["content-length"]) == len(packed.body) < len(unpacked.body)
    assert plain(packed) == unpacked.body


@pytest.mark.parametrize("accepts", REFUSE)
async def test_nobody_gets_what_he_can_not_read(fleet: Start, model: str, raw: Client, accepts: str) -> None:
    fleet(model)
    answer = await raw.post(chat(model, LONG, x_echo=True), accept_encoding=accepts)
    assert "content-encoding" not in answer.headers
    assert json.loads(answer.body)["x_echo"]


async def test_a_short_answer_is_not_worth_it(fleet: Start, model: str, raw: Client) -> None:
    fleet(model, tokens=3)
    answer = await raw.post(chat(model, SHORT), accept_encoding="gzip")
    assert len(answer.body) < 1024
    assert "content-encoding" not in answer.headers
    assert json.loads(answer.body)


@pytest.mark.parametrize("more", [{}, {"seed": 1}])
async def test_streams_are_never_packed_not_even_out_of_the_cache(
    fleet: Start, model: str, raw: Client, more: dict[str, int]
) -> None:
    fleet(model, tokens=200)
    for body in (chat(model, LONG, **more), *[streamed(model, LONG, **more)] * 3):
        answer = await raw.post(body, accept_encoding="gzip")
        assert len(plain(answer)) > 1024
        assert ("content-encoding" in answer.headers) is ("stream" not in body)


async def test_a_very_long_answer_arrives_whole(fleet: Start, model: str, raw: Client) -> None:
    fleet(model)
    body = {"model": model, "input": [f"text {number}" for number in range(100)]}
    packed = await raw.post(body, EMBEDDINGS, accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert plain(packed) == (await raw.post(body, EMBEDDINGS, cache_control="no-store")).body


async def test_lists_and_errors_are_packed_alike(fleet: Start, model: str, raw: Client) -> None:
    fleet(model)
    listed = await raw.get("/api/v1/openapi.json", accept_encoding="gzip")
    assert listed.headers["content-encoding"] == "gzip"
    assert json.loads(plain(listed))["openapi"]
    refused = await raw.ask("POST", CHAT, data=b"{}", accept_encoding="gzip")
    assert json.loads(refused.body)["error"]["param"] == "model"
