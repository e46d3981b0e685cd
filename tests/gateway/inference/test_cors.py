"""Pages in browsers: those origins that a setting names, and no others; without the setting none."""

import pytest

from tests.gateway.client import CHAT, Client, chat, streamed
from tests.gateway.elsewhere import Elsewhere

PAGE = "https://page.example"
ASKS = {
    "access_control_request_method": "POST",
    "access_control_request_headers": "authorization,content-type,x-stainless-os",
}


async def test_a_page_that_is_named_may_ask(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking() as client:
        for origin in (PAGE, "https://other.example"):
            allowed = await client.ask("OPTIONS", CHAT, origin=origin, **ASKS)
            assert allowed.status == 204
            assert allowed.headers["access-control-allow-origin"] == origin
            assert "POST" in allowed.headers["access-control-allow-methods"]
            assert allowed.headers["access-control-allow-headers"] == ASKS["access_control_request_headers"]
            assert allowed.headers["vary"].lower() == "origin"
            for answer in (
                await client.post(chat(elsewhere.model), origin=origin),
                await client.post(streamed(elsewhere.model), origin=origin),
                await client.post(b"{", origin=origin),
                await client.get("/v1/models", key="nobody", origin=origin),
            ):
                assert answer.headers["access-control-allow-origin"] == origin


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


async def test_programs_see_nothing_of_it(elsewhere: Elsewhere) -> None:
    async with elsewhere.asking() as client:
        answer = await client.post(chat(elsewhere.model))
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_without_the_setting_no_page_may(client: Client) -> None:
    for answer in (await client.ask("OPTIONS", CHAT, origin=PAGE, **ASKS), await client.get("/v1/models", origin=PAGE)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
