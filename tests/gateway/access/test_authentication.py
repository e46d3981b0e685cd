"""Who asks is proven by a key in force, in either header; everybody else gets the same 401."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from apps.gateway.access.keys.shape import mint
from apps.gateway.models import Key
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client
from tests.held_up import HELD_UP
from tests.instance import Instance

ROUTES = [
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("POST", EMBEDDINGS),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/x"),
    ("GET", "/metrics"),
]


@pytest.fixture
async def stranger(citadel: Instance) -> AsyncIterator[Client]:
    """Has no key."""
    async with aiohttp.ClientSession(citadel.url) as session:
        yield Client(session)


def altered(key: str) -> str:
    """With another last character: the checksum is wrong."""
    return key[:-1] + ("a" if key[-1] != "a" else "b")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer  "])
async def test_a_bearer_is_known(citadel: Instance, stranger: Client, scheme: str) -> None:
    assert (await stranger.get("/v1/models", authorization=scheme + citadel.key())).status == 200


async def test_so_is_x_api_key(citadel: Instance, stranger: Client) -> None:
    assert (await stranger.get("/v1/models", x_api_key=citadel.key())).status == 200


async def test_of_two_the_authorization_counts(citadel: Instance, stranger: Client) -> None:
    good, bad = citadel.key(), altered(citadel.key())
    assert (await stranger.get("/v1/models", authorization=f"Bearer {good}", x_api_key=bad)).status == 200
    assert (await stranger.get("/v1/models", authorization=f"Bearer {bad}", x_api_key=good)).status == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_no_key_is_401_everywhere(stranger: Client, method: str, path: str) -> None:
    answer = await stranger.ask(method, path, data=b"{}" if method == "POST" else None)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="citadel"'
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)


async def test_whatever_is_no_key_in_force_gets_the_same_answer(citadel: Instance, stranger: Client) -> None:
    unknown, (other_home, _) = altered(citadel.key()), mint()
    refused = [
        await stranger.get("/v1/models", authorization=text)
        for text in (f"Bearer {unknown}", f"Bearer {other_home}", "Bearer x", "Bearer ctd_", "Bearer " + "x" * 5000)
    ]
    assert {answer.status for answer in refused} == {401}
    assert len({answer.body for answer in refused}) == 1
    assert unknown.encode() not in refused[0].body


@pytest.mark.parametrize("text", ["Basic YTpi", "Bearer", "Bearer ", "", "Token x", "Digest username=x"])
async def test_other_schemes_are_told_how_it_is_done(stranger: Client, text: str) -> None:
    answer = await stranger.get("/v1/models", authorization=text)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_who_forgets_the_word_before_the_key_is_told_so(citadel: Instance, stranger: Client) -> None:
    key = citadel.key()
    answer = await stranger.get("/v1/models", authorization=key)
    assert answer.status == 401
    assert "The word Bearer is missing" in answer.json()["error"]["message"]
    assert key.encode() not in answer.body


async def test_a_revoked_key_is_refused_within_a_second_and_its_sisters_are_not(
    citadel: Instance, stranger: Client
) -> None:
    team = f"team-{mint()[1]}"
    revoked, sister = citadel.key(team), citadel.key(team)
    assert (await stranger.get("/v1/models", key=revoked)).status == 200
    Key.objects.filter(key_id=revoked.split("_")[1]).update(revoked=datetime.now(UTC))
    at = time.monotonic()
    while (await stranger.get("/v1/models", key=revoked)).status == 200:
        assert time.monotonic() - at < 1 + HELD_UP
    assert (await stranger.get("/v1/models", key=revoked)).status == 401
    assert (await stranger.get("/v1/models", key=sister)).status == 200


async def test_a_key_ends_at_its_time(citadel: Instance, stranger: Client) -> None:
    key = citadel.key()
    row = Key.objects.filter(key_id=key.split("_")[1])
    row.update(expires=datetime.now(UTC) + timedelta(seconds=1.5))
    citadel.settle()
    assert (await stranger.get("/v1/models", key=key)).status == 200
    await asyncio.sleep(1.6)
    assert (await stranger.get("/v1/models", key=key)).status == 401
    row.update(expires=datetime.now(UTC) + timedelta(hours=1))
    citadel.settle()
    assert (await stranger.get("/v1/models", key=key)).status == 200


async def test_a_new_key_works_in_its_first_request_even_if_it_was_unknown_before(
    citadel: Instance, stranger: Client
) -> None:
    keys = [citadel.key() for _ in range(5)]
    answers = await asyncio.gather(*(stranger.get("/v1/models", key=key) for key in keys for _ in range(4)))
    assert {answer.status for answer in answers} == {200}
