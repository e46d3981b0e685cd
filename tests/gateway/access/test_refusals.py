"""What the security log hears of refused requests: who has asked, from where, for what, and why; never a secret."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from apps.gateway.access.keys import life
from apps.gateway.access.keys.shape import mint
from tests.gateway.access import signing
from tests.gateway.client import CHAT, Client, Reply, chat
from tests.instance import Instance
from tests.orchestration.socket import refused
from tests.security_lines import Line, told

USES = "/v1/models"
BUDGETS = "/api/v1/budgets"
Ask = Callable[[str], Awaitable[object]]
"""Asks under a request id."""


@pytest.fixture
async def stranger(citadel: Instance) -> AsyncIterator[Client]:
    """Carries no key."""
    async with aiohttp.ClientSession(citadel.url) as session:
        yield Client(session)


async def line_of(citadel: Instance, ask: Ask) -> Line:
    """The one line about a request. Others may be refused in the same second, which leaves no room for it: then it is
    asked again.
    """
    for _ in range(5):
        identity = f"told-{secrets.token_hex(8)}"
        await ask(identity)
        if found := await asyncio.to_thread(told, citadel, request_id=identity):
            [line] = found
            return line
    raise AssertionError("nothing is told")


async def test_a_key_that_is_none(citadel: Instance, stranger: Client) -> None:
    revoked = citadel.key()
    life.revoke(revoked.split("_")[1])
    for key, who in ((mint()[0], True), (revoked, True), ("nonsense", False), (mint()[0][:-1] + "-", False)):
        line = await line_of(citadel, lambda identity, key=key: stranger.get(USES, key=key, x_request_id=identity))  # type: ignore[misc]
        assert (line["event"], line["code"]) == ("credential_refused", "invalid_api_key")
        assert (line["method"], line["path"], line["address"]) == ("GET", USES, "127.0.0.1")
        assert line.get("who") == (key.split("_")[1] if who else None)
        assert key[15:] not in json.dumps(line) or key == "nonsense"


async def test_a_token_and_a_signature(citadel: Instance, stranger: Client) -> None:
    line = await line_of(citadel, lambda identity: stranger.get(USES, key="a.b.c", x_request_id=identity))
    assert (line["event"], line["code"], "who" in line) == ("credential_refused", "invalid_token", False)

    plain = citadel.key()
    other, identity_of = life.signing_secret(citadel.key()), plain.split("_")[1]
    for made in (signing.simple, signing.message):

        def ask(identity: str, made: Any = made) -> Awaitable[Reply]:
            where = USES if made is signing.simple else citadel.url + USES
            headers = made(other.replace(other.split("_")[1], identity_of), "GET", where)
            return stranger.ask("GET", USES, **headers, x_request_id=identity)

        line = await line_of(citadel, ask)
        assert (line["event"], line["code"], line["who"]) == ("credential_refused", "invalid_signature", identity_of)


async def test_an_oauth_client(citadel: Instance, stranger: Client) -> None:
    key = mint()[0]
    form = f"grant_type=client_credentials&client_id={key.split('_')[1]}&client_secret={key}".encode()
    kind = "application/x-www-form-urlencoded"
    line = await line_of(
        citadel,
        lambda identity: stranger.post(form, "/api/v1/oauth/token", content_type=kind, x_request_id=identity),
    )
    assert (line["event"], line["code"], line["path"]) == (
        "credential_refused",
        "invalid_client",
        "/api/v1/oauth/token",
    )


async def test_who_may_not(citadel: Instance, stranger: Client) -> None:
    """A role, an address, a model, another team's key, and more than the own."""
    team, model = f"team-{secrets.token_hex(4)}", f"model-{secrets.token_hex(4)}"
    plain, elsewhere = citadel.key(team), citadel.key(team, addresses=["10.9.9.9/32"])
    narrow, owner = citadel.key(team, models=["another"]), citadel.key(team, role="owner")
    foreign = citadel.key().split("_")[1]
    more = json.dumps({"name": "x", "role": "operator"}).encode()
    asked: dict[str, tuple[str, Ask, str]] = {
        "forbidden": (plain, lambda i: stranger.get("/metrics", key=plain, x_request_id=i), "metrics.see"),
        "address_not_allowed": (elsewhere, lambda i: stranger.get(USES, key=elsewhere, x_request_id=i), "address"),
        "model_not_found": (narrow, lambda i: stranger.post(chat(model), key=narrow, x_request_id=i), model),
        "not_found": (owner, lambda i: stranger.get(f"/api/v1/keys/{foreign}", key=owner, x_request_id=i), foreign),
        "grant_exceeds_own": (owner, lambda i: stranger.post(more, "/api/v1/keys", key=owner, x_request_id=i), ""),
    }
    for code, (key, ask, reason) in asked.items():
        line = await line_of(citadel, ask)
        assert (line["event"], line["code"], line["who"]) == ("access_denied", code, key.split("_")[1])
        assert reason in line["reason"]
    assert line["team"] == team


async def test_what_is_no_request_that_may_be(citadel: Instance, client: Client) -> None:
    deep = b"[" * 1000 + b"]" * 1000
    for body, code in ((deep, "json_too_deep"), (b"[1e999]", "invalid_json"), (b"x" * 11_000_000, "request_too_large")):
        line = await line_of(citadel, lambda i, body=body: client.post(body, x_request_id=i))  # type: ignore[misc]
        assert (line["event"], line["code"]) == ("request_refused", code)


async def test_who_sends_more_than_he_may(citadel: Instance, stranger: Client, fleet: Callable[..., object]) -> None:
    """Requests, tokens, and money, of a key and of a token that it has lent."""
    model = f"model-{secrets.token_hex(4)}"
    fleet(model)
    often, much = citadel.key(requests_per_minute=1), citadel.key(tokens_per_minute=10)
    lent = (await stranger.post(b"", "/api/v1/auth/token", key=often)).json()["access_token"]
    assert (await stranger.post(chat(model), key=often)).status == 200
    poor = citadel.key()
    await stranger.post({"key_id": poor.split("_")[1], "period": "day", "tokens": 0}, BUDGETS, key=citadel.admin_key)
    citadel.settle()
    asked = {
        often: (often, "rate_limit_exceeded"),
        lent: (often, "rate_limit_exceeded"),
        much: (much, "token_limit_too_small"),
        poor: (poor, "budget_exceeded"),
    }
    for key, (whose, code) in asked.items():
        line = await line_of(citadel, lambda i, key=key: stranger.post(chat(model), key=key, x_request_id=i))  # type: ignore[misc]
        assert (line["event"], line["code"], line["who"]) == ("rate_exceeded", code, whose.split("_")[1])
        assert (line["path"], line["address"]) == (CHAT, "127.0.0.1")


async def test_of_servers_that_have_enough_to_do_nothing_is_told(
    citadel: Instance, client: Client, fleet: Callable[..., Any]
) -> None:
    model = f"model-{secrets.token_hex(4)}"
    fleet(model).behave("error 429")
    reply = await client.post(chat(model))
    assert (reply.status, reply.code) == (429, "server_busy")
    assert not told(citadel, within=0.3, request_id=reply.identity)


async def test_who_watches_what_he_may_not(citadel: Instance) -> None:
    key = citadel.key()
    line = await line_of(citadel, lambda i: refused(citadel, {"authorization": f"Bearer {key}", "x-request-id": i}))
    assert (line["event"], line["who"], line["path"]) == ("access_denied", key.split("_")[1], "/ws/console")


async def test_where_citadel_is_not_to_connect_to(citadel: Instance, client: Client) -> None:
    asked = {"id": "never", "hostname": "169.254.169.254", "port": 80, "kind": "openai", "models": ["m"]}
    line = await line_of(
        citadel, lambda i: client.post(asked, "/orchestration/servers/register", key=citadel.admin_key, x_request_id=i)
    )
    assert (line["event"], line["host"]) == ("address_refused", "169.254.169.254")


async def test_of_what_is_answered_nothing_is_told(citadel: Instance, client: Client) -> None:
    for place in (USES, "/health/live", "/v1/nothing"):
        reply = await client.get(place)
        assert not told(citadel, within=0.3, request_id=reply.identity)
