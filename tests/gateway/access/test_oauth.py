"""OAuth 2.0: clients that are API keys, with a client library as anybody has it, and by hand where that sends no such
thing.
"""

import asyncio
import base64
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import psycopg
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuthError
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata

from tests.gateway.client import Client, Reply, chat
from tests.held_up import HELD_UP
from tests.instance import Instance, running

TOKEN, INTROSPECT, REVOKE = (f"/api/v1/oauth/{name}" for name in ("token", "introspect", "revoke"))
WELL_KNOWN = "/.well-known/oauth-authorization-server"
USES = "/v1/models"
GRANT = {"grant_type": "client_credentials"}
GRANT_OF = {TOKEN: urlencode(GRANT) + "&", INTROSPECT: "", REVOKE: ""}


def id_of(key: str) -> str:
    return key.split("_")[1]


def basic(client_id: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()


def as_client(key: str) -> dict[str, str]:
    """A key's id and itself, as HTTP Basic."""
    return {"authorization": basic(id_of(key), key)}


async def post(client: Client, path: str, values: Mapping[str, str] | str, **headers: str) -> Reply:
    """A form, by nobody unless the headers say who; what all such answers must have is there."""
    client.session.headers.pop("authorization", None)
    body = values if isinstance(values, str) else urlencode(values)
    headers = {"content_type": "application/x-www-form-urlencoded", **headers}
    reply = await client.ask("POST", path, data=body.encode(), **headers)
    assert (reply.headers["cache-control"], reply.headers["pragma"]) == ("no-store", "no-cache")
    if reply.status != 200:
        assert reply.json().keys() == {"error", "error_description"}
        assert reply.json()["error_description"]
    assert ("www-authenticate" in reply.headers) is (reply.status == 401)
    return reply


async def granted(client: Client, key: str, **asked: str) -> str:
    reply = await post(client, TOKEN, GRANT | asked, **as_client(key))
    assert reply.status == 200, reply.body
    return str(reply.json()["access_token"])


async def introspected(client: Client, token: str, **proof: str) -> dict[str, Any]:
    reply = await post(client, INTROSPECT, {"token": token}, **proof)
    assert reply.status == 200, reply.body
    told: dict[str, Any] = reply.json()
    return told


async def is_active(client: Client, token: str, **proof: str) -> bool:
    told = await introspected(client, token, **proof)
    assert told["active"] or told == {"active": False}
    return bool(told["active"])


async def until_refused(client: Client, token: str, within: float = 1.0) -> None:
    deadline = time.monotonic() + within + HELD_UP
    while (reply := await client.get(USES, key=token)).status != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert reply.code in ("invalid_token", "invalid_api_key")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A Citadel with four workers that say in their logs all that they can."""
    settings = {"CITADEL_DEMO_FLEET": "0", "CITADEL_SERVER__WORKERS": "4", "CITADEL_LOG__LEVEL": "debug"}
    with running(tmp_path_factory.mktemp("several"), settings) as citadel:
        yield citadel


@pytest.fixture
async def anyone(several: Instance) -> AsyncIterator[Client]:
    """Each request on a connection of its own, and so with any worker."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(several.url, connector=connector) as session:
        yield Client(session)


async def made(client: Client, citadel: Instance, **fields: Any) -> str:
    """A key of a Citadel whose database is not this process's."""
    reply = await client.post({"name": "n", **fields}, "/api/v1/keys", key=citadel.admin_key)
    assert reply.status == 200, reply.body
    return str(reply.json()["key"])


# By a client library.


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_an_unmodified_client_gets_a_token_uses_introspects_and_revokes_it(
    citadel: Instance, method: str
) -> None:
    key = citadel.key(role="auditor")
    async with AsyncOAuth2Client(
        id_of(key), key, token_endpoint_auth_method=method, revocation_endpoint_auth_method=method
    ) as library:
        server = (await library.request("GET", citadel.url + WELL_KNOWN, withhold_token=True)).json()
        told = await library.fetch_token(server["token_endpoint"], scope="metrics.see")
        assert (told["token_type"], told["expires_in"], told["scope"]) == ("Bearer", 3600, "metrics.see")
        assert (await library.get(citadel.url + "/metrics")).status_code == 200
        assert (await library.get(citadel.url + "/orchestration/servers/list")).status_code == 403
        introspection = (await library.introspect_token(server["introspection_endpoint"])).json()
        now = int(time.time())
        assert introspection == {
            "active": True,
            "scope": "metrics.see",
            "client_id": id_of(key),
            "sub": id_of(key),
            "token_type": "Bearer",
            "iat": pytest.approx(now, abs=30),
            "exp": introspection["iat"] + 3600,
            "jti": introspection["jti"],
        }
        revoked = await library.revoke_token(server["revocation_endpoint"], token_type_hint="access_token")
        assert revoked.status_code == 200
        assert (await library.introspect_token(server["introspection_endpoint"])).json() == {"active": False}
        refused = await library.get(citadel.url + "/metrics")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_token")
        with pytest.raises(OAuthError, match="invalid_scope"):
            await library.fetch_token(server["token_endpoint"], scope="fleet.own")


async def test_what_is_told_of_the_server_is_what_the_standard_wants(citadel: Instance, client: Client) -> None:
    client.session.headers.pop("authorization")
    reply = await client.get(WELL_KNOWN)
    told = reply.json()
    assert told["issuer"] == citadel.url
    AuthorizationServerMetadata(json.loads(reply.body.replace(b"http:", b"https:"))).validate()
    assert told["grant_types_supported"] == ["client_credentials"]
    assert "models.use" in told["scopes_supported"]
    for name in ("token", "introspection", "revocation"):
        assert told[f"{name}_endpoint"].startswith(told["issuer"] + "/")
    assert (await client.post(b"", WELL_KNOWN)).status == 405


async def test_it_is_called_what_its_client_calls_it(client: Client) -> None:
    for host in ("citadel.example", "Citadel.EXAMPLE", "citadel.example:80"):
        told = (await client.get(WELL_KNOWN, host=host)).json()
        assert told["issuer"] == "http://citadel.example"


# What a token may.


async def test_a_token_may_what_its_key_may_or_less_and_never_more(citadel: Instance, client: Client) -> None:
    key = citadel.key(role="operator", scopes=["metrics.see", "fleet.see"])
    for asked, scope in (({}, "fleet.see metrics.see"), ({"scope": ""}, "fleet.see metrics.see")):
        reply = await post(client, TOKEN, GRANT | asked, **as_client(key))
        assert reply.json()["scope"] == scope
    for asked in ("models.use", "metrics.see models.use", "all", "metrics.see  fleet.see", "metrics.see\0"):
        reply = await post(client, TOKEN, GRANT | {"scope": asked}, **as_client(key))
        assert (reply.status, reply.json()["error"]) == (400, "invalid_scope")
    token = await granted(client, key, scope="metrics.see")
    paths = ("/metrics", "/orchestration/servers/list", USES)
    assert [(await client.get(path, key=token)).status for path in paths] == [200, 403, 403]


async def test_a_key_that_may_nothing_gets_no_token(citadel: Instance, client: Client) -> None:
    key = citadel.key(role="auditor", scopes=["models.use"])
    reply = await post(client, TOKEN, GRANT, **as_client(key))
    assert (reply.status, reply.json()["error"]) == (400, "invalid_scope")


async def test_a_token_does_not_grow_with_its_key(citadel: Instance, client: Client) -> None:
    key = citadel.key(role="auditor")
    token = await granted(client, key)
    changed = await client.ask(
        "PATCH", f"/api/v1/keys/{id_of(key)}", data=b'{"role": "operator"}', key=citadel.admin_key
    )
    assert changed.status == 200
    await asyncio.sleep(1 + HELD_UP)
    assert (await client.get(USES, key=key)).status == 200
    assert (await client.get(USES, key=token)).status == 403


async def test_a_token_shares_the_limits_and_models_of_its_key(citadel: Instance, client: Client) -> None:
    key = citadel.key(requests_per_minute=2)
    token, body = await granted(client, key), chat("smollm2:135m", max_tokens=1)
    assert [(await client.post(body, key=one)).status for one in (key, token, key, token)] == [200, 200, 429, 429]
    elsewhere = await granted(client, citadel.key(models=["another"]))
    assert (await client.post(body, key=elsewhere)).code == "model_not_found"


async def test_a_client_asks_from_the_addresses_of_its_key(citadel: Instance, client: Client) -> None:
    reply = await post(client, TOKEN, GRANT, **as_client(citadel.key(addresses=["192.0.2.0/24"])))
    assert (reply.status, reply.json()["error"]) == (400, "unauthorized_client")


async def test_a_token_lasts_no_longer_than_its_key(citadel: Instance, client: Client) -> None:
    key = citadel.key(expires=datetime.now(UTC) + timedelta(seconds=100))
    told = (await post(client, TOKEN, GRANT, **as_client(key))).json()
    assert 50 < told["expires_in"] <= 100
    about = await introspected(client, told["access_token"], **as_client(key))
    assert about["exp"] <= time.time() + 100


# Its end.


async def test_a_revoked_token_is_refused_by_every_worker_within_a_second(several: Instance, anyone: Client) -> None:
    key = await made(anyone, several)
    tokens = [await granted(anyone, key) for _ in range(21)]
    *revoked, kept = tokens
    assert {(await anyone.get(USES, key=token)).status for token in tokens * 2} == {200}
    replies = await asyncio.gather(*(post(anyone, REVOKE, {"token": token}, **as_client(key)) for token in revoked))
    assert {reply.status for reply in replies} == {200}
    await asyncio.sleep(1 + HELD_UP)
    answers = await asyncio.gather(*(anyone.get(USES, key=token) for token in revoked * 5))
    assert {(answer.status, answer.code) for answer in answers} == {(401, "invalid_token")}
    assert (await anyone.get(USES, key=kept)).status == 200


async def test_a_token_ends_with_its_key_in_every_worker(several: Instance, anyone: Client) -> None:
    key = await made(anyone, several)
    token = await granted(anyone, key)
    assert {(await anyone.get(USES, key=token)).status for _ in range(12)} == {200}
    await anyone.ask("DELETE", f"/api/v1/keys/{id_of(key)}", key=several.admin_key)
    await asyncio.sleep(1 + HELD_UP)
    assert {(await anyone.get(USES, key=token)).status for _ in range(12)} == {401}
    reply = await post(anyone, TOKEN, GRANT, **as_client(key))
    assert (reply.status, reply.json()["error"]) == (401, "invalid_client")


async def test_logs_tell_neither_tokens_nor_secrets(several: Instance, anyone: Client) -> None:
    key = await made(anyone, several)
    token = await granted(anyone, key)
    await post(anyone, TOKEN, GRANT | {"client_id": id_of(key), "client_secret": key})
    await introspected(anyone, token, **as_client(key))
    await post(anyone, REVOKE, {"token": token}, **as_client(key))
    logs = b"".join(log.read_bytes() for log in several.home.glob("logs/*.log"))
    assert b"configuration_loaded" in logs
    for secret in (key, token, token.rpartition(".")[2], as_client(key)["authorization"]):
        assert secret.encode() not in logs


async def test_a_token_that_a_key_has_lent_is_revoked_too(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    token = (await client.post(b"", "/api/v1/auth/token", key=key)).json()["access_token"]
    assert (await introspected(client, token, **as_client(key)))["scope"] == "models.use"
    assert (await post(client, REVOKE, {"token": token, "token_type_hint": "nonsense"}, **as_client(key))).status == 200
    await until_refused(client, token)


async def test_only_whom_it_concerns_revokes_a_token(citadel: Instance, client: Client) -> None:
    team = f"team-{secrets.token_hex(4)}"
    key, owner, other = citadel.key(team), citadel.key(team, role="owner"), citadel.key(role="owner")
    token = await granted(client, key)
    for stranger in (other, citadel.key(team)):
        reply = await post(client, REVOKE, {"token": token}, **as_client(stranger))
        assert (reply.status, reply.json()["error"]) == (400, "invalid_grant")
    assert (await client.get(USES, key=token)).status == 200
    for proof in ({"authorization": f"Bearer {owner}"}, {"x_api_key": citadel.admin_key}, as_client(other)):
        assert (await post(client, REVOKE, {"token": token}, **proof)).status == 200, "or it has ended already"
    await until_refused(client, token)


async def test_what_is_no_token_is_revoked_and_what_is_another_s_is_not(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    for nothing in ("x", "a.b.c", "\0", "' OR 1=1 --", "ä" * 100):
        assert (await post(client, REVOKE, {"token": nothing}, **as_client(key))).status == 200
    reply = await post(client, REVOKE, {"token": key}, **as_client(key))
    assert (reply.status, reply.json()["error"]) == (400, "unsupported_token_type")
    assert (await client.get(USES, key=key)).status == 200


async def test_a_revoked_token_is_remembered_for_longer_than_clocks_differ(citadel: Instance, client: Client) -> None:
    """It ends by Redis's clock and is forgotten by others, of which one may be ahead."""
    from apps.gateway.models import RevokedToken

    key = citadel.key()
    token = await granted(client, key)
    about = await introspected(client, token, **as_client(key))
    assert (await post(client, REVOKE, {"token": token}, **as_client(key))).status == 200
    assert RevokedToken.objects.get(jti=about["jti"]).ends.timestamp() >= about["exp"] + 1200


async def test_what_is_remembered_of_revoked_tokens_has_bounds(citadel: Instance, client: Client) -> None:
    from apps.gateway.access.tokens.revoked import MOST
    from apps.gateway.models import RevokedToken

    full, other = citadel.key(), citadel.key()
    later, before = datetime.now(UTC) + timedelta(hours=1), datetime.now(UTC) - timedelta(seconds=1)
    ended = RevokedToken.objects.create(jti=secrets.token_urlsafe(12), key_id=id_of(other), ends=before)
    RevokedToken.objects.bulk_create(
        RevokedToken(jti=secrets.token_urlsafe(12), key_id=id_of(full), ends=later) for _ in range(MOST)
    )
    try:
        token = await granted(client, full)
        reply = await post(client, REVOKE, {"token": token}, **as_client(full))
        assert (reply.status, reply.json()["error"]) == (503, "temporarily_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert (await client.get(USES, key=token)).status == 200
        assert (await post(client, REVOKE, {"token": await granted(client, other)}, **as_client(other))).status == 200
        assert not RevokedToken.objects.filter(pk=ended.pk).exists()
    finally:
        RevokedToken.objects.filter(key_id=id_of(full)).delete()


async def test_those_that_have_ended_leave_room_for_others(citadel: Instance, client: Client) -> None:
    from apps.gateway.access.tokens.revoked import LONGER, MOST
    from apps.gateway.models import RevokedToken

    key, ended = citadel.key(), datetime.now(UTC) + timedelta(seconds=LONGER - 1)
    RevokedToken.objects.bulk_create(
        RevokedToken(jti=secrets.token_urlsafe(12), key_id=id_of(key), ends=ended) for _ in range(MOST)
    )
    try:
        token = await granted(client, key)
        assert (await post(client, REVOKE, {"token": token}, **as_client(key))).status == 200
        await until_refused(client, token)
        assert RevokedToken.objects.filter(key_id=id_of(key)).count() == MOST + 1, "they are remembered all the same"
    finally:
        RevokedToken.objects.filter(key_id=id_of(key)).delete()


# Introspection.


async def test_introspection_tells_whom_it_concerns(citadel: Instance, client: Client) -> None:
    team = f"team-{secrets.token_hex(4)}"
    key = citadel.key(team)
    token = await granted(client, key)
    concerned = {
        "itself": as_client(key),
        "its own token": {"authorization": f"Bearer {token}"},
        "the team's owner": as_client(citadel.key(team, role="owner")),
        "an administrator": {"authorization": f"Bearer {citadel.admin_key}"},
    }
    others = {
        "a colleague": as_client(citadel.key(team)),
        "the team's member": as_client(citadel.key(team, role="member")),
        "the team's viewer": as_client(citadel.key(team, role="viewer")),
        "another team's owner": as_client(citadel.key(role="owner")),
        "an operator": as_client(citadel.key(role="operator")),
        "an administrator that may not": as_client(citadel.key(role="admin", scopes=["models.use"])),
    }
    told = {who: await is_active(client, token, **proof) for who, proof in (concerned | others).items()}
    assert told == {**dict.fromkeys(concerned, True), **dict.fromkeys(others, False)}


async def test_what_is_no_good_token_is_none(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    token = await granted(client, key)
    head, claims, signature = token.split(".")
    altered = (f"{head}.{claims}.", f"{head}.{claims}.{signature[:-4]}AAAA")
    for none in (*altered, key, "x", "a.b.c", "\0", "ä", "x" * 9000):
        assert not await is_active(client, none, authorization=f"Bearer {citadel.admin_key}")
    ending = (await client.post({"expires_in": 1}, "/api/v1/auth/token", key=key)).json()["access_token"]
    await asyncio.sleep(2.1)
    assert not await is_active(client, ending, **as_client(key))


async def test_nobody_is_told_nothing(citadel: Instance, client: Client) -> None:
    token = await granted(client, citadel.key())
    for path in (INTROSPECT, REVOKE):
        for proof in ({}, {"authorization": "Bearer x"}, {"authorization": basic("a", "b")}, {"x_api_key": "x"}):
            reply = await post(client, path, {"token": token}, **proof)
            assert reply.status == 401
            bearer = "Bearer" in str(proof) or "x_api_key" in proof
            assert reply.headers["www-authenticate"].startswith("Bearer" if bearer else "Basic")
            assert reply.json()["error"] == ("invalid_token" if bearer else "invalid_client")


# What is refused.


async def test_who_is_no_client(citadel: Instance, client: Client) -> None:
    key, other = citadel.key(), citadel.key()
    token = await granted(client, key)
    proofs: list[dict[str, str]] = [
        {},
        {"authorization": f"Bearer {key}"},
        {"x_api_key": key},
        {"authorization": basic(id_of(other), key)},
        {"authorization": basic("", key)},
        {"authorization": basic(id_of(key), other)},
        {"authorization": basic(id_of(key), token)},
        {"authorization": basic(id_of(key), key[:-1] + "x")},
        {"authorization": basic(id_of(key), "' OR '1'='1")},
        {"authorization": basic("\0", "\0")},
        {"authorization": "Basic"},
        {"authorization": "Basic !!!"},
        {"authorization": f"{basic(id_of(key), key)}, {basic(id_of(key), key)}"},
    ]
    for proof in proofs:
        reply = await post(client, TOKEN, GRANT, **proof)
        assert (reply.status, reply.json()["error"]) == (401, "invalid_client"), proof
        assert reply.headers["www-authenticate"].startswith("Basic ")
    for secret in ("x" * 12_000, "ä", "\0", "", key + "\n"):
        reply = await post(client, TOKEN, {**GRANT, "client_id": id_of(key), "client_secret": secret})
        assert (reply.status, reply.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("grant_type=client_credentials&grant_type=client_credentials", "invalid_request"),
        ("grant_type=client_credentials&scope=models.use&scope=models.use", "invalid_request"),
        ("grant_type=client_credentials&whatever=1&whatever=2", "invalid_request"),
        ("", "invalid_request"),
        ("scope=models.use", "invalid_request"),
        ("grant_type=", "invalid_request"),
        ("grant_type=client_credentials&x=%zz", "invalid_request"),
        ("grant_type=client_credentials&x=\u00e4", "invalid_request"),
        ("grant_type=client_credentials&x=" + "x" * 20_000, "invalid_request"),
        ("grant_type=password&username=a&password=b", "unsupported_grant_type"),
        ("grant_type=authorization_code&code=a", "unsupported_grant_type"),
        ("grant_type=CLIENT_CREDENTIALS", "unsupported_grant_type"),
    ],
)
async def test_a_request_that_says_the_wrong_thing(citadel: Instance, client: Client, body: str, error: str) -> None:
    reply = await post(client, TOKEN, body, **as_client(citadel.key()))
    assert (reply.status, reply.json()["error"]) == (400, error)


@pytest.mark.parametrize("path", [TOKEN, INTROSPECT, REVOKE])
async def test_a_form_is_not_held_to_what_json_may_be(citadel: Instance, client: Client, path: str) -> None:
    """Secrets and tokens are random text: some of it looks like a number that no double holds."""
    key = citadel.key()
    for value in ("a1e300b", "0" * 400, "%5B" * 1000, "%5Cud800"):
        reply = await post(client, path, f"{GRANT_OF[path]}token={value}", **as_client(key))
        assert reply.status == 200, reply.body
    for value in ("[" * 1000, "\\ud800", "\u00e4"):
        reply = await post(client, path, f"{GRANT_OF[path]}token={value}", **as_client(key))
        assert (reply.status, reply.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", [TOKEN, INTROSPECT, REVOKE])
async def test_json_is_no_form(citadel: Instance, client: Client, path: str) -> None:
    for body in ("{}", "[" * 1000, "1e999"):
        reply = await post(client, path, body, content_type="application/json", **as_client(citadel.key()))
        assert (reply.status, reply.json()["error"]) == (400, "invalid_request")


async def test_what_nobody_needs_is_left_aside(citadel: Instance, client: Client) -> None:
    """RFC 6749, 3.2."""
    reply = await post(client, TOKEN, GRANT | {"audience": "x", "resource": "y"}, **as_client(citadel.key()))
    assert reply.status == 200


async def test_the_address_carries_nothing(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    credentials = {"client_id": id_of(key), "client_secret": key}
    for query in (GRANT, credentials, {"token": key}, {"x": ""}):
        for path in (TOKEN, INTROSPECT, REVOKE):
            reply = await post(client, f"{path}?{urlencode(query)}", GRANT, **as_client(key))
            assert (reply.status, reply.json()["error"]) == (400, "invalid_request")
    for path in (TOKEN, INTROSPECT, REVOKE):
        reply = await client.get(f"{path}?{urlencode(GRANT | credentials)}", **as_client(key))
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_a_body_that_is_no_form(citadel: Instance, client: Client) -> None:
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        reply = await post(client, TOKEN, GRANT, content_type=kind, **as_client(citadel.key()))
        assert (reply.status, reply.json()["error"]) == (400, "invalid_request")


async def test_what_else_a_form_holds_means_nothing(citadel: Instance, client: Client) -> None:
    more = dict.fromkeys(("extra_credentials", "client", "scopes", "user", "token", "expires_in", "_params"), "x")
    assert (await post(client, TOKEN, GRANT | more, **as_client(citadel.key()))).status == 200


# Under load.


def connections(citadel: Instance) -> list[tuple[str, str]]:
    """What Citadel has open with the database: who, and what it does."""
    query = "SELECT application_name, state FROM pg_stat_activity WHERE application_name LIKE 'citadel%'"
    with psycopg.connect(citadel.database_url, application_name="looks") as connection:
        return sorted(connection.execute(query).fetchall())


async def test_fifty_at_once_get_fifty_tokens_and_open_no_connection(several: Instance, anyone: Client) -> None:
    key = await made(anyone, several)
    await granted(anyone, key)
    await asyncio.sleep(1 + HELD_UP)  # all workers know the key
    before = len(connections(several))
    tokens = await asyncio.gather(*(granted(anyone, key) for _ in range(50)))
    assert len(set(tokens)) == 50
    assert len(connections(several)) <= before


async def test_who_hangs_up_leaves_nothing_behind(several: Instance, anyone: Client) -> None:
    """Wherever in its request: connections come back, and what was begun is ended."""
    key, place = await made(anyone, several), urlsplit(several.url)
    tokens = [await granted(anyone, key) for _ in range(31)]
    for number, token in enumerate(tokens[1:]):
        body = urlencode({"token": token}).encode()
        head = (
            f"POST {REVOKE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n"
            f"authorization: {as_client(key)['authorization']}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(head.encode() + (body if number % 3 else body[:-1]))
            await asyncio.sleep(number / 3000)
    await asyncio.sleep(1)
    assert not [row for row in connections(several) if row[1] != "idle"]
    assert (await post(anyone, REVOKE, {"token": tokens[0]}, **as_client(key))).status == 200
    await asyncio.sleep(1 + HELD_UP)
    for token in tokens:
        statuses = {(await anyone.get(USES, key=token)).status for _ in range(6)}
        assert len(statuses) == 1, "all workers say the same"
