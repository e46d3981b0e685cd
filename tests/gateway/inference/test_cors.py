"""Pages in browsers: those origins that a setting names, and no others; without the setting none."""

import pytest

from citadel.cors import Cors
from tests.gateway.client import CHAT, Client, Reply, chat, streamed
from tests.gateway.elsewhere import Elsewhere

PAGE = "https://page.example"
ASKS = {
    "access_control_request_method": "POST",
    "access_control_request_headers": "authorization,content-type,x-stainless-os",
}


def own_headers(answer: Reply) -> set[str]:
    """What is told by names that no standard has, but what browsers alone heed."""
    names = {name for name in map(str.lower, answer.headers) if name.startswith(("x-", "openai-", "retry-"))}
    return names - {"x-content-type-options"}


async def test_a_page_that_is_named_may_ask(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking() as client:
        for origin in (PAGE, "https://other.example"):
            allowed = await client.ask("OPTIONS", CHAT, origin=origin, **ASKS)
            assert allowed.status == 204
            assert allowed.headers["access-control-allow-origin"] == origin
            assert "POST" in allowed.headers["access-control-allow-methods"]
            assert allowed.headers["access-control-allow-headers"] == ASKS["access_control_request_headers"]
            assert allowed.headers["vary"].lower() == "origin"
            assert "content-length" not in allowed.headers
            for answer in (
                await client.post(chat(elsewhere.model), origin=origin),
                await client.post(streamed(elsewhere.model), origin=origin),
                await client.post(b"{", origin=origin),
                await client.get("/v1/models", key="nobody", origin=origin),
            ):
                assert answer.headers["access-control-allow-origin"] == origin
                own = own_headers(answer)
                assert own <= set(answer.headers["access-control-expose-headers"].split(", "))
                assert "x-request-id" in own


async def test_a_page_may_read_when_to_come_again(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking(elsewhere.key(requests_per_minute=1)) as client:
        for status in (200, 429):
            answer = await client.post(chat(elsewhere.model), origin=PAGE)
            assert answer.status == status
        told = set(answer.headers["access-control-expose-headers"].split(", "))
        assert own_headers(answer) <= told
        assert "retry-after" in answer.headers


async def test_a_page_may_read_what_is_left_of_its_tokens(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking(elsewhere.key(tokens_per_minute=1000)) as client:
        for most, status in ((10, 200), (5000, 429)):
            answer = await client.post(chat(elsewhere.model, max_tokens=most), origin=PAGE)
            assert answer.status == status
            assert "x-ratelimit-remaining-tokens" in answer.headers
            assert own_headers(answer) <= set(answer.headers["access-control-expose-headers"].split(", "))
        assert answer.headers["x-should-retry"] == "false"


async def test_a_preflight_needs_no_key_and_reaches_nothing(elsewhere: Elsewhere) -> None:
    elsewhere.server.clear()
    async with elsewhere.asking() as client:
        answer = await client.ask("OPTIONS", CHAT, key="nobody", origin=PAGE, **ASKS)
        assert (answer.status, answer.body) == (204, b"")
    assert not elsewhere.server.log()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://page.example.evil.example", "http://page.example", "null"]
)
async def test_no_other_page_may(elsewhere: Elsewhere, origin: str) -> None:
    async with elsewhere.asking() as client:
        for answer in (
            await client.ask("OPTIONS", CHAT, origin=origin, **ASKS),
            await client.post(chat(elsewhere.model), origin=origin),
        ):
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
            assert answer.headers["vary"] == "origin"


async def test_programs_see_nothing_of_it(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking() as client:
        answer = await client.post(chat(elsewhere.model))
        assert answer.headers["vary"] == "origin", "a page might get it out of a cache"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_where_all_pages_may_they_are_told_the_same() -> None:
    cors = Cors(["*"])
    for headers in ({}, {b"origin": PAGE.encode()}, {b"origin": b"null"}):
        told = dict(cors.headers(headers))
        assert told[b"access-control-allow-origin"] == b"*"
        assert b"vary" not in told


async def test_without_the_setting_no_page_may(client: Client) -> None:
    for answer in (await client.ask("OPTIONS", CHAT, origin=PAGE, **ASKS), await client.get("/v1/models", origin=PAGE)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
