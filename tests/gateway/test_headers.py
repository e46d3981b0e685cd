"""What each answer tells browsers, and what nobody is answered."""

from collections.abc import Mapping

import pytest

from tests.gateway.client import Client, chat, streamed
from tests.instance import Instance

PLACES = (
    "/v1/models",
    "/v1/nothing",
    "/health/live",
    "/metrics",
    "/orchestration/servers/list",
    "/api/v1/openapi.json",
)


def assert_is_no_page(headers: Mapping[str, str]) -> None:
    """Which a browser runs, frames, keeps, or takes for another type than it says."""
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize("place", PLACES)
async def test_what_programs_get_is_no_page(client: Client, place: str) -> None:
    for key in (None, "nonsense"):
        assert_is_no_page((await client.get(place, key=key)).headers)


async def test_neither_are_answers_and_refusals(client: Client) -> None:
    for body in (chat("smollm2:135m", max_tokens=1), streamed("smollm2:135m", max_tokens=1), chat("nobody's"), b"{"):
        assert_is_no_page((await client.post(body)).headers)


@pytest.mark.parametrize("place", ["/static/admin/css/base.css", "/admin/login/", "/static/nothing.css"])
async def test_pages_and_files_are_what_they_say_and_tell_no_other_place_of_it(client: Client, place: str) -> None:
    headers = (await client.get(place)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin" or place == "/static/admin/css/base.css"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("place", ["/v1/models", "/admin/login/", "/static/admin/css/base.css"])
async def test_nobody_is_shown_what_he_has_sent(citadel: Instance, client: Client, place: str) -> None:
    reply = await client.ask("TRACE", place, x_secret="to-be-kept")
    assert reply.status in (404, 405)
    assert b"to-be-kept" not in reply.body


@pytest.mark.parametrize(
    "place", ["/static/", "/static/admin/", "/static/../manage.py", "/.git/HEAD", "/static/.git/HEAD"]
)
async def test_no_folder_is_shown_and_no_file_but_the_console_s(client: Client, place: str) -> None:
    assert (await client.get(place)).status == 404
