"""Client certificates: a trusted proxy's word on them proves the holder of the key they are tied to, nobody else's."""

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.command import manage
from tests.gateway.access.certificate import certificate, fingerprint, rfc9440
from tests.gateway.access.conftest import ANYBODY, PROXY, SCRAPER, Coming
from tests.gateway.client import Reply
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import ASKING

USES = "/v1/models"
KEYS = "/api/v1/keys"


@pytest.fixture
async def team(proxied: Instance, coming: Coming) -> str:
    slug = f"team-{secrets.token_hex(4)}"
    async with coming() as client:
        await client.post({"slug": slug, "name": slug}, "/api/v1/teams", key=proxied.admin_key)
    return slug


@pytest.fixture
def tie(proxied: Instance, coming: Coming, team: str) -> Callable[..., Any]:
    """Makes a key that certificates are tied to."""

    async def tie(*certificates: bytes, by: str | None = None, **fields: Any) -> Reply:
        asked = {"name": "n", "team": team, "certificates": [fingerprint(der) for der in certificates], **fields}
        async with coming() as client:
            reply = await client.post(asked, KEYS, key=by or proxied.admin_key)
        proxied.settle()
        return reply

    return tie


def fresh(**days: float) -> bytes:
    return certificate(secrets.token_hex(4), **days)


async def shown(coming: Coming, value: str | bytes, address: str = PROXY, path: str = USES, **more: str) -> Reply:
    header = value if isinstance(value, str) else rfc9440(value)
    async with coming(address) as client:
        return await client.get(path, client_cert=header, **more)


async def test_the_proxy_s_word_proves_a_key_s_holder_and_nobody_else_s_does(coming: Coming, tie: Any) -> None:
    der = fresh()
    made = (await tie(der)).json()
    assert made["certificates"] == [fingerprint(der)]
    assert (await shown(coming, der)).status == 200
    for _ in range(4):  # whichever worker
        reply = await shown(coming, der, ANYBODY)
        assert (reply.status, reply.code) == (401, "invalid_api_key")
    forwarded = await shown(coming, der, ANYBODY, x_forwarded_for=PROXY, forwarded=f"for={PROXY}")
    assert forwarded.status == 401


async def test_it_is_that_key_with_all_that_restricts_it(proxied: Instance, coming: Coming, tie: Any) -> None:
    der, elsewhere = fresh(), fresh()
    made = (await tie(der, role="auditor")).json()
    await tie(elsewhere, addresses=["192.0.2.7/32"])
    assert (await shown(coming, der, path="/metrics")).status == 200
    assert (await shown(coming, der)).code == "forbidden"
    assert (await shown(coming, elsewhere)).code == "address_not_allowed"
    assert (await shown(coming, elsewhere, x_forwarded_for="192.0.2.7")).status == 200
    async with coming() as client:
        await client.ask("DELETE", f"{KEYS}/{made['key_id']}", key=proxied.admin_key)
    deadline = time.monotonic() + 1 + HELD_UP
    while (await shown(coming, der, path="/metrics")).status != 401:
        assert time.monotonic() < deadline
    assert (await tie(der)).status == 200, "a revoked key's certificate may be tied to another"


@pytest.mark.parametrize(("days", "told"), [({"begins": -2, "ends": -1}, "expired"), ({"begins": 1, "ends": 2}, "yet")])
async def test_its_time_counts(coming: Coming, tie: Any, days: dict[str, float], told: str) -> None:
    der = fresh(**days)
    await tie(der)
    reply = await shown(coming, der)
    assert (reply.status, reply.code) == (401, "invalid_certificate")
    assert told in reply.json()["error"]["message"]


async def test_what_is_not_one_certificate_that_is_tied_is_refused(coming: Coming, tie: Any) -> None:
    der, unknown = fresh(), fresh()
    await tie(der)
    good = rfc9440(der)
    for value in (
        rfc9440(unknown),
        f"{good}, {good}",
        f"{good};a=1",
        good.replace(":", ""),
        good[:-20] + ":",
        rfc9440(der + b"x"),
        ":AAAA:",
        "x" * 20_000,
        "'; DROP TABLE gateway_key; --",
        "\u00e9",
    ):
        reply = await shown(coming, value)
        assert (reply.status, reply.code) == (401, "invalid_certificate"), value
    assert (await shown(coming, "")).code == "invalid_api_key"


async def test_two_lines_of_the_header_are_refused(coming: Coming, tie: Any) -> None:
    der = fresh()
    await tie(der)
    async with coming(PROXY) as client:
        lines = [("client-cert", rfc9440(der)), ("client-cert", rfc9440(der))]
        async with client.session.get(USES, headers=lines) as answer:
            assert answer.status == 401
        asking = [*ASKING.items(), *lines]
        async with client.session.get("/ws/console", headers=asking) as answer:
            assert (await answer.json())["error"]["code"] == "invalid_certificate"


@pytest.mark.parametrize("header", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
async def test_a_browser_proves_nobody_by_it(coming: Coming, tie: Any, header: dict[str, str]) -> None:
    """It shows a certificate for whatever page makes it ask."""
    der = fresh()
    await tie(der, role="auditor")
    assert (await shown(coming, der, path="/metrics", **header)).code == "foreign_origin"
    assert (await shown(coming, der, path="/ws/console", **ASKING, **header)).code == "foreign_origin"


async def test_it_goes_before_the_console_s_session_and_a_scraper_s_address(coming: Coming, tie: Any) -> None:
    der, cookie = fresh(), {"cookie": "sessionid=nonsense"}
    await tie(der, role="auditor")
    async with (
        coming(PROXY) as client,
        client.session.ws_connect("/ws/console", headers={"client-cert": rfc9440(der), **cookie}) as link,
    ):
        assert (await link.receive_json())["type"] == "snapshot"
    assert (await shown(coming, fresh(), path="/ws/console", **ASKING, **cookie)).code == "invalid_certificate"
    assert (await shown(coming, "", path="/metrics", x_forwarded_for=SCRAPER)).status == 200
    assert (await shown(coming, fresh(), path="/metrics", x_forwarded_for=SCRAPER)).code == "invalid_certificate"


async def test_one_that_a_browser_shows_goes_before_neither(proxied: Instance, coming: Coming, tie: Any) -> None:
    """Where a proxy asks all for one, the console is for those who have one too."""
    der = fresh()
    await tie(der, role="auditor")
    own = {"origin": proxied.url, "cookie": "sessionid=nonsense"}
    assert (await shown(coming, der, path="/ws/console", **ASKING, **own)).code == "invalid_api_key"
    page = {"sec-fetch-site": "none", "x-forwarded-for": SCRAPER}
    assert (await shown(coming, der, path="/metrics", **page)).status == 200


async def test_a_socket_ends_with_the_key(proxied: Instance, coming: Coming, tie: Any) -> None:
    der = fresh()
    made = (await tie(der, role="auditor")).json()
    async with (
        coming(PROXY) as client,
        client.session.ws_connect("/ws/console", headers={"client-cert": rfc9440(der)}) as link,
    ):
        await client.ask("DELETE", f"{KEYS}/{made['key_id']}", key=proxied.admin_key)
        async with asyncio.timeout(5 + HELD_UP):
            while not link.closed:
                await link.receive()
        assert link.close_code == 1008


async def test_a_certificate_is_tied_to_one_key_by_administrators(
    proxied: Instance, coming: Coming, tie: Any, team: str
) -> None:
    der, second = fresh(), fresh()
    owner = (await tie(role="owner")).json()["key"]
    assert (await tie(der)).status == 200
    twice = await tie(second, der)
    assert (twice.status, twice.json()["error"]["param"]) == (400, "certificates")
    assert "tied to another key" in twice.json()["error"]["message"]
    reply = await tie(second, by=owner)
    assert (reply.status, reply.code) == (403, "forbidden")


async def test_it_is_tied_and_untied_by_the_api(proxied: Instance, coming: Coming, tie: Any) -> None:
    one, other = fresh(), fresh()
    made = (await tie()).json()
    assert made["certificates"] is None

    async def change(*told: str) -> Reply:
        async with coming() as client:
            reply = await client.ask(
                "PATCH",
                f"{KEYS}/{made['key_id']}",
                data=f'{{"certificates": [{", ".join(told)}]}}'.encode(),
                key=proxied.admin_key,
            )
        proxied.settle()
        return reply

    as_openssl_writes_it = ":".join(fingerprint(one)[place : place + 2].upper() for place in range(0, 64, 2))
    changed = await change(f'"{as_openssl_writes_it}"', f'"{fingerprint(other)}"')
    assert changed.json()["certificates"] == sorted([fingerprint(one), fingerprint(other)])
    assert [(await shown(coming, der)).status for der in (one, other)] == [200, 200]
    assert (await change()).json()["certificates"] is None
    assert [(await shown(coming, der)).status for der in (one, other)] == [401, 401]
    assert (await change('"nonsense"')).json()["error"]["param"] == "certificates"


async def test_it_is_tied_by_the_command_line(proxied: Instance, coming: Coming, team: str) -> None:
    der = fresh()
    words = ("key", "create", "--team", team, "--name", "n", "--certificate")
    done = await asyncio.to_thread(manage, proxied.home, *words, fingerprint(der), "--signing-secret")
    assert done.returncode == 0, done.stderr
    key, secret = done.stdout.splitlines()
    assert secret.startswith(f"cts_{key.split('_')[1]}_")
    proxied.settle()
    assert (await shown(coming, der)).status == 200
    done = await asyncio.to_thread(manage, proxied.home, *words, "nonsense")
    assert "--certificate: 'nonsense' is no SHA-256 fingerprint" in done.stderr


async def test_one_that_two_keys_claim_proves_neither(proxied: Instance, coming: Coming, tie: Any) -> None:
    """However it came into the database."""
    import psycopg

    der = fresh()
    await tie(der)
    other = (await tie()).json()["key_id"]
    with psycopg.connect(proxied.database_url) as connection:
        told = f'["{fingerprint(der)}", 5]'
        connection.execute("UPDATE gateway_key SET certificates = %s WHERE key_id = %s", (told, other))
    proxied.settle()
    reply = await shown(coming, der)
    assert (reply.status, reply.code) == (401, "invalid_certificate")
