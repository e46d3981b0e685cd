"""Tokens: Citadel's own, which a key lends, and a trusted issuer's, which is real and answers over a socket."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from apps.gateway.access.tokens.heads import head_of
from apps.gateway.access.tokens.issuers import Issuer as Trusted
from apps.gateway.access.tokens.key_sets import KeySet
from citadel.caller import Caller
from citadel.config import load
from citadel.errors import Forbidden, Unauthenticated
from citadel.sections import IssuerSection
from tests.gateway.access.issuer import AUDIENCE, Issuer, part, signed_with_secret
from tests.gateway.client import Client, chat
from tests.held_up import HELD_UP
from tests.instance import Instance, running
from tests.redis_database import redis_database

LEND = "/api/v1/auth/token"
USES = "/v1/models"
ANOTHER = "another-audience"


def id_of(key: str) -> str:
    return key.split("_")[1]


async def lent(client: Client, key: str, **asked: Any) -> str:
    reply = await client.post(asked, LEND, key=key)
    assert reply.status == 200, reply.body
    return str(reply.json()["access_token"])


async def test_a_key_lends_a_token_that_does_what_it_does(citadel: Instance, client: Client) -> None:
    key = citadel.key(requests_per_minute=2)
    reply = await client.post(b"", LEND, key=key)
    told = reply.json()
    assert (told["token_type"], told["expires_in"], told["scope"]) == ("Bearer", 3600, None)
    assert reply.headers["cache-control"] == "no-store"
    token = told["access_token"]
    assert id_of(key) not in token
    body = chat("smollm2:135m", max_tokens=1)
    assert [(await client.post(body, key=one)).status for one in (key, token, key, token)] == [200, 200, 429, 429]


async def test_it_ends_when_it_says(citadel: Instance, client: Client) -> None:
    token = await lent(client, citadel.key(), expires_in=1)
    assert (await client.get(USES, key=token)).status == 200
    await asyncio.sleep(2.1)  # its end is told in whole seconds
    reply = await client.get(USES, key=token)
    assert (reply.status, reply.code) == (401, "invalid_token")
    assert "expired" in reply.json()["error"]["message"]


async def test_it_is_told_to_last_no_longer_than_its_key(citadel: Instance, client: Client) -> None:
    key = citadel.key(expires=datetime.now(UTC) + timedelta(seconds=100))
    told = (await client.post({}, LEND, key=key)).json()
    assert 50 < told["expires_in"] <= 100


async def test_it_ends_with_its_key(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    token = await lent(client, key)
    assert (await client.get(USES, key=token)).status == 200
    await client.ask("DELETE", f"/api/v1/keys/{id_of(key)}", key=citadel.admin_key)
    deadline = time.monotonic() + 1 + HELD_UP
    while (await client.get(USES, key=token)).status != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_it_ends_with_its_secret(citadel: Instance, client: Client) -> None:
    key = citadel.key()
    token = await lent(client, key)
    path = f"/api/v1/keys/{id_of(key)}/rotate"
    new = (await client.post({"grace": 0}, path, key=citadel.admin_key)).json()["key"]
    await asyncio.sleep(1 + HELD_UP)
    assert (await client.get(USES, key=token)).status == 401
    assert (await client.get(USES, key=await lent(client, new))).status == 200


async def test_it_may_do_less_than_its_key_and_never_more(citadel: Instance, client: Client) -> None:
    key = citadel.key(role="operator", scopes=["metrics.see", "fleet.see"])
    narrowed = await lent(client, key, scopes=["metrics.see"])
    assert (await client.get("/metrics", key=narrowed)).status == 200
    assert (await client.get("/orchestration/servers/list", key=narrowed)).status == 403
    assert (await client.get(USES, key=narrowed)).status == 403
    for beyond in ("models.use", "fleet.operate", "all"):
        reply = await client.post({"scopes": ["metrics.see", beyond]}, LEND, key=key)
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (400, "invalid_scope", "scopes")
        assert error["message"] == f"'{beyond}' is no permission that this key has, which are: fleet.see, metrics.see."


async def test_a_token_lends_none(citadel: Instance, client: Client) -> None:
    reply = await client.post({}, LEND, key=await lent(client, citadel.key()))
    assert (reply.status, reply.code) == (403, "key_needed")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"expires_in": 0}', "expires_in"),
        ('{"expires_in": "x"}', "expires_in"),
        ('{"scopes": ["all"]}', "scopes"),
        ('{"scopes": []}', "scopes"),
    ],
)
async def test_a_bad_field_is_named(client: Client, citadel: Instance, body: str, param: str) -> None:
    reply = await client.post(body.encode(), LEND, key=citadel.admin_key)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


async def test_what_is_altered_is_refused(citadel: Instance, client: Client) -> None:
    token = await lent(client, citadel.key())
    assert (await client.get(USES, key=token)).status == 200
    head, claims, signature = token.split(".")
    said = json.loads(jwt.utils.base64url_decode(claims))
    for altered in (
        f"{head}.{part(said | {'exp': said['exp'] + 1})}.{signature}",
        f"{head}.{claims}.{signature[:-5]}AAAAA",
        f"{head}.{claims}.",
        f"{part({'alg': 'none', 'typ': 'JWT'})}.{claims}.",
        signed_with_secret({"alg": "HS256", "typ": "JWT"}, said, b""),
        signed_with_secret({"alg": "HS256", "typ": "JWT"}, said, b"citadel"),
    ):
        reply = await client.get(USES, key=altered)
        assert (reply.status, reply.code) == (401, "invalid_token"), altered


async def test_tokens_that_begin_alike_stay_apart(citadel: Instance, client: Client) -> None:
    plain, narrow = citadel.key(), citadel.key(role="auditor")
    tokens = [await lent(client, key) for key in (plain, narrow)]
    assert tokens[0][:36] == tokens[1][:36]
    for _ in range(2):
        assert [(await client.get(USES, key=token)).status for token in tokens] == [200, 403]


# Of issuers.


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer().serving() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def trusting(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A Citadel that takes the issuer's tokens, with two workers."""
    section = {
        "issuer": issuer.url,
        "audience": AUDIENCE,
        "algorithms": ["RS256", "ES256"],
        "team_claim": "team",
        "roles_claim": "groups",
        "roles": {"it-operators": "operator", "it-audit": "auditor"},
        "role": "developer",
    }
    another = {
        "issuer": issuer.url,
        "audience": ANOTHER,
        "team": "another-team",
        "roles_claim": "realm_access.roles",
        "roles": {"fleet": "operator"},
    }
    settings = {
        "CITADEL_DEMO_FLEET": "0",
        "CITADEL_SERVER__WORKERS": "2",
        "CITADEL_TOKENS__ISSUERS": json.dumps([section, another]),
        "CITADEL_TOKENS__LEEWAY": "1",
        "CITADEL_SECURITY__ISSUER_NETWORKS": "[loopback]",
    }
    with running(tmp_path_factory.mktemp("trusting"), settings) as citadel:
        yield citadel


@pytest.fixture
async def holder(trusting: Instance) -> AsyncIterator[Client]:
    """Each request on a connection of its own, and so with any worker."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(trusting.url, connector=connector) as session:
        yield Client(session)


async def test_an_issuer_s_token_is_taken(issuer: Issuer, holder: Client) -> None:
    for token in (issuer.token(), issuer.token("ec", algorithm="ES256")):
        for _ in range(6):
            assert (await holder.get(USES, key=token)).status == 200
        assert (await holder.get("/metrics", key=token)).status == 403


@pytest.mark.parametrize(
    ("groups", "metrics"),
    [
        ("it-operators", 200),
        (["x", "it-audit"], 200),
        ([], 403),
        (["IT-OPERATORS"], 403),
        ({"it-audit": 1}, 403),
        (5, 403),
    ],
)
async def test_its_groups_make_the_role(issuer: Issuer, holder: Client, groups: Any, metrics: int) -> None:
    assert (await holder.get("/metrics", key=issuer.token(groups=groups))).status == metrics


async def test_each_audience_has_an_entry_of_its_own(issuer: Issuer, holder: Client) -> None:
    operates = {"team": None, "groups": "it-audit", "realm_access": {"roles": ["fleet"]}}
    token = issuer.token(aud=ANOTHER, **operates)
    assert [(await holder.get(path, key=token)).status for path in (USES, "/metrics")] == [200, 200]
    reply = await holder.get(USES, key=issuer.token(aud=[ANOTHER, "somebody-else"]))
    assert (reply.status, reply.code) == (403, "no_role")
    for both in ([AUDIENCE, ANOTHER], [ANOTHER, AUDIENCE]):
        reply = await holder.get(USES, key=issuer.token(aud=both, **operates))
        assert (reply.status, reply.code) == (401, "invalid_token"), "the first entry counts, which wants a team"
    for no_audience in ([], "somebody-else", ["somebody-else"], 5, [5], {ANOTHER: 1}):
        reply = await holder.get(USES, key=issuer.token(aud=no_audience, **operates))
        assert (reply.status, reply.code) == (401, "invalid_token")


async def test_its_claim_makes_the_team(issuer: Issuer, holder: Client) -> None:
    for team in (None, 5, "", "a b", "a\0", "x" * 65, ["a"]):
        reply = await holder.get(USES, key=issuer.token(team=team))
        assert (reply.status, reply.code) == (401, "invalid_token")


BAD = {
    "for another audience": {"aud": "somebody-else"},
    "without audience": {"aud": None},
    "of another issuer": {"iss": "https://issuer.example"},
    "of no issuer": {"iss": None},
    "expired": {"exp": 1_600_000_000},
    "without end": {"exp": None},
    "with an end beyond all numbers": {"exp": 10**400},
    "with an end that is none": {"exp": "tomorrow"},
    "not yet valid": {"nbf": 4_000_000_000},
    "of nobody": {"sub": None},
    "of a number": {"sub": 5},
    "of an empty name": {"sub": ""},
    "of what is no text": {"sub": "\ud800"},
    "with an end in quotes": {"exp": "4000000000"},
    "with an end that is true": {"exp": True},
    "with an end after all dates": {"exp": 10**300},
    "issued in quotes": {"iat": "1"},
}


@pytest.mark.parametrize("claims", BAD.values(), ids=BAD)
async def test_what_is_signed_well_and_says_the_wrong_thing(issuer: Issuer, holder: Client, claims: Any) -> None:
    for _ in range(2):
        reply = await holder.get(USES, key=issuer.token(**claims))
        assert (reply.status, reply.code) == (401, "invalid_token")


@pytest.mark.parametrize("names", [{}, {"kid": "1"}], ids=["no", "the same"])
async def test_keys_that_have_no_id_or_the_same_are_told_apart(names: dict[str, str]) -> None:
    """By their types, and by who has signed (RFC 7517, 4.5): so an issuer's keys are while they are exchanged."""
    issuer = Issuer()
    issuer.keys["rsa-2"] = rsa.generate_private_key(65537, 2048)
    issuer.keys["ec-2"] = ec.generate_private_key(ec.SECP384R1())
    section = IssuerSection(issuer="https://i.example", audience="a", team="t", role="developer")
    section = section.model_copy(update={"algorithms": ("RS256", "ES256", "ES384")})
    keys = KeySet(section, load(), None)  # type: ignore[arg-type]  # no Redis is asked here
    told = [{**key, "kid": names.get("kid")} for key in json.loads(issuer.key_set())["keys"]]
    told = [{name: value for name, value in key.items() if value is not None} for key in told]
    keys._take([msgspec.Raw(json.dumps(key).encode()) for key in told], time.monotonic())
    entry = Trusted(section, load(), keys)
    claims = {"iss": "https://i.example", "aud": "a", "sub": "x", "exp": int(time.time()) + 300}
    for kid, algorithm in (("rsa", "RS256"), ("rsa-2", "RS256"), ("ec", "ES256"), ("ec-2", "ES384")):
        token = jwt.encode(claims, issuer.keys[kid], algorithm, names).encode()
        assert (await entry.caller(token, head_of(token))).name == "x"
    stranger = jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256", names).encode()
    with pytest.raises(Unauthenticated):
        await entry.caller(stranger, head_of(stranger))


@pytest.mark.parametrize(
    "more",
    [
        {"crit": ["b64"], "b64": True},
        {"crit": ["exp"]},
        {"jku": "http://127.0.0.1/keys"},
        {"x5u": "http://127.0.0.1/keys"},
        {"x5c": ["MIIB"]},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"jwk": None},
    ],
)
async def test_a_head_that_brings_its_own_rules(issuer: Issuer, holder: Client, more: Any) -> None:
    good = issuer.token()
    head, claims, _ = good.split(".")
    said = json.loads(jwt.utils.base64url_decode(head)) | more
    text = f"{part(said)}.{claims}"
    signature = jwt.get_algorithm_by_name("RS256").sign(text.encode(), issuer.keys["rsa"])
    reply = await holder.get(USES, key=f"{text}.{part(signature)}")
    assert (reply.status, reply.code) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("typ", "claims", "taken"),
    [
        ("at+jwt", {}, True),
        ("application/at+jwt", {"nonce": "n"}, True),
        ("AT+JWT", {}, True),
        ("JWT", {}, True),
        (None, {"typ": "Bearer"}, True),
        ("JWT", {"typ": "Bearer", "nonce": "n"}, True),  # as Keycloak made them before its version 25
        ("JWT", {"typ": "Refresh", "nonce": "n"}, False),
        ("JWT", {"typ": ["Bearer"], "nonce": "n"}, False),
        ("JWT", {"nonce": "n"}, False),
        ("JWT", {"at_hash": "h"}, False),
        (None, {"c_hash": "h"}, False),
        ("JWT", {"typ": "ID"}, False),
        ("JWT", {"events": {}}, False),
        ("logout+jwt", {}, False),
        ("id_token+jwt", {}, False),
        ("dpop+jwt", {}, False),
        (5, {}, False),
    ],
    ids=str,
)
async def test_an_access_token_is_taken_and_no_other(
    issuer: Issuer, holder: Client, typ: Any, claims: Any, taken: bool
) -> None:
    """An ID token that is meant for the same audience proves who somebody is, not what a program may do."""
    reply = await holder.get(USES, key=issuer.token(headers={"typ": typ}, **claims))
    assert (reply.status, reply.code) == ((200, "") if taken else (401, "invalid_token"))


async def holder_of(token: str, by: Issuer, **entry: Any) -> Caller:
    """Who holds it where this is the entry of its issuer, whose keys are known."""
    section = IssuerSection(issuer=by.url, audience=AUDIENCE, **entry)
    keys = KeySet(section, load(), None)  # type: ignore[arg-type]  # no Redis is asked here
    published = json.loads(by.key_set())["keys"]
    keys._take([msgspec.Raw(json.dumps(key).encode()) for key in published], time.monotonic())
    return await Trusted(section, load(), keys).caller(token.encode(), head_of(token.encode()))


@pytest.mark.parametrize(("typ", "taken"), [("at+jwt", True), ("JWT", False), (None, False)])
async def test_where_each_must_say_what_it_is(issuer: Issuer, typ: str | None, taken: bool) -> None:
    token = issuer.token(headers={"typ": typ})
    with nullcontext() if taken else pytest.raises(Unauthenticated, match="does not say that it is an access token"):
        await holder_of(token, issuer, team="t", role="developer", typed=True)


async def test_what_keycloak_says_lies_deeper(issuer: Issuer) -> None:
    said = {"resource_access": {"citadel.example": {"roles": ["it-operators"]}}, "department": {"short": "it"}}
    entry = {"roles_claim": "resource_access.citadel.example.roles", "roles": {"it-operators": "operator"}}
    holder = await holder_of(issuer.token(**said), issuer, team_claim="department.short", **entry)
    assert (holder.team, holder.role) == ("it", "operator")


@pytest.mark.parametrize("said", [{}, {"groups": "staff"}, {"groups": []}, {"groups": {"it-operators": True}}], ids=str)
async def test_who_is_known_and_has_no_role_may_nothing(issuer: Issuer, said: Any) -> None:
    with pytest.raises(Forbidden) as caught:
        entry = {"roles_claim": "groups", "roles": {"it-operators": "operator"}}
        await holder_of(issuer.token(**said), issuer, team="t", **entry)
    assert caught.value.code == "no_role"
    assert caught.value.whose.startswith("token-")


async def test_another_way_of_signing_than_the_key_s(issuer: Issuer, holder: Client) -> None:
    """A public key is no secret: who takes it for one lets everybody in (RFC 8725, 2.1)."""
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "x", "exp": int(time.time()) + 300, "team": "t"}
    public = issuer.public("rsa")
    stranger = rsa.generate_private_key(65537, 2048)
    for token in (
        signed_with_secret({"alg": "HS256", "kid": "rsa"}, claims, public),
        signed_with_secret({"alg": "RS256", "kid": "rsa"}, claims, public),
        signed_with_secret({"alg": "none"}, claims, b""),
        f"{part({'alg': 'none', 'kid': 'rsa'})}.{part(claims)}.",
        f"{part({'alg': 'nOnE', 'kid': 'rsa'})}.{part(claims)}.",
        issuer.token(algorithm="RS512"),
        issuer.token(algorithm="PS256"),
        issuer.token("ec", algorithm="ES256", headers={"kid": "rsa"}),
        issuer.token(headers={"kid": "ec"}),
        jwt.encode(claims, stranger, "RS256", {"kid": "rsa"}),
    ):
        reply = await holder.get(USES, key=token)
        assert (reply.status, reply.code) == (401, "invalid_token"), token


@pytest.mark.parametrize(
    "token", [".", "..", "...", "a.b.c", "eyJ9.eyJ9.", f"{'a' * 9000}.b.c", "\u00e9.a.b", f"{part([1])}.{part({})}.x"]
)
async def test_what_is_no_token(holder: Client, token: str) -> None:
    reply = await holder.get(USES, key=token)
    assert (reply.status, reply.code) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("document", "usable"),
    [
        ({"keys": [{"kty": "RSA"}, {"kty": "oct", "k": "AAAA", "kid": "x"}, {"alg": "none", "kty": "RSA"}]}, 0),
        ({"keys": [{"kid": ["a"], "kty": "EC"}, 5, None, "x", [], {}]}, 0),
        ({"keys": []}, 0),
        ({"keys": ["GOOD", {"kty": "OKP", "crv": "none"}]}, 1),
    ],
)
async def test_what_is_no_key_spoils_no_key_set(document: Any, usable: int) -> None:
    """And a set without any takes nothing from the one before."""
    issuer = Issuer()
    section = IssuerSection(issuer="https://i.example", audience="a", team="t", role="developer")
    keys = KeySet(section, load(), None)  # type: ignore[arg-type]  # no Redis is asked here
    good = json.loads(issuer.key_set())["keys"]
    told = [good[0] if key == "GOOD" else key for key in document["keys"]]
    keys._take([msgspec.Raw(json.dumps(key).encode()) for key in good], 1.0)
    keys._take([msgspec.Raw(json.dumps(key).encode()) for key in told], 2.0)
    assert len(keys._keys) == (usable or 2)


async def test_a_flood_of_unknown_keys_asks_the_issuer_once_and_a_new_key_is_found(
    issuer: Issuer, holder: Client
) -> None:
    """Whatever worker they meet; and the good ones are let in meanwhile."""
    good = issuer.token()
    assert (await holder.get(USES, key=good)).status == 200
    before = len(issuer.asked)
    floods = [issuer.token(headers={"kid": f"unknown-{number}"}) for number in range(100)]
    replies = await asyncio.gather(*(holder.get(USES, key=token) for token in floods))
    assert {(reply.status, reply.code) for reply in replies} == {(401, "invalid_token")}
    assert (await holder.get(USES, key=good)).status == 200
    assert len(issuer.asked) - before <= 1
    issuer.keys["rsa-2"] = rsa.generate_private_key(65537, 2048)
    new = issuer.token("rsa-2")
    deadline = time.monotonic() + 35 + HELD_UP
    while (await holder.get(USES, key=new)).status != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    await asyncio.sleep(1 + HELD_UP)  # within which the other worker looks at what this one has got
    assert [(await holder.get(USES, key=new)).status for _ in range(6)] == [200] * 6
    pauses = [later - earlier for earlier, later in zip(issuer.asked, issuer.asked[1:], strict=False)]
    assert all(pause > 29 - HELD_UP for pause in pauses), pauses


async def test_who_leaves_while_keys_are_fetched_takes_them_from_nobody(citadel: Instance, issuer: Issuer) -> None:
    """Nobody else would ask the issuer for half a minute."""
    begun = asyncio.Event()

    class Slow(KeySet):
        async def _fetch(self) -> list[msgspec.Raw]:
            begun.set()
            await asyncio.sleep(0.2)
            return [msgspec.Raw(msgspec.json.encode(key)) for key in msgspec.json.decode(issuer.key_set())["keys"]]

    section = IssuerSection(issuer=f"https://{secrets.token_hex(8)}.example", audience="a", team="t", role="developer")
    async with redis_database(citadel, 13) as state:
        keys = Slow(section, load(), state)
        first = asyncio.create_task(keys.find("rsa"))
        await begun.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await keys.find("rsa")
