"""Signed requests: each form proves a key's holder, once, for what was signed, and as long as the key is good."""

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apps.gateway.access.keys import life
from apps.gateway.access.signatures.nonce import LEAST, MOST, most_of, nonce_of
from apps.gateway.models import Key
from citadel.caller import Caller, Limits
from citadel.errors import LimitExceeded, Unauthenticated
from tests.fleet.control import Fleet
from tests.gateway.access import signing
from tests.gateway.access.conftest import Coming
from tests.gateway.client import CHAT, Client, Reply, chat
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import ready, refused, watching
from tests.redis_database import redis_database

Start = Callable[..., Fleet]
KEYS = "/api/v1/keys"
USES = "/v1/models"


@pytest.fixture
async def stranger(citadel: Instance) -> AsyncIterator[Client]:
    """Carries no key."""
    async with aiohttp.ClientSession(citadel.url) as session:
        yield Client(session)


class Signer:
    """Signs requests to a Citadel, in one of the forms."""

    def __init__(self, url: str, form: str, secret: str, private: Ed25519PrivateKey | None = None):
        self.url, self.form, self.secret, self.private = url, form, secret, private

    def headers(self, method: str, target: str, body: bytes = b"", **more: Any) -> dict[str, str]:
        if self.form == "simple":
            return signing.simple(self.secret, method, target, body, **more)
        if "at" in more:
            more["created"] = int(more.pop("at"))
        if self.private:
            more = {"keyid": self.secret.split("_")[1], "alg": "ed25519", **more}
        return signing.message(self.private or self.secret, method, self.url + target, body, **more)

    async def ask(self, client: Client, method: str, target: str, body: bytes = b"", **more: Any) -> Reply:
        return await client.ask(method, target, data=body or None, **self.headers(method, target, body, **more))


def signer_of(citadel: Instance, form: str, key: str) -> Signer:
    private = Ed25519PrivateKey.generate() if form == "ed25519" else None
    if private:
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        row = Key.objects.get(key_id=key.split("_")[1])
        row.public_key = pem
        row.full_clean()
        row.save()
    citadel.settle()
    return Signer(citadel.url, form, life.signing_secret(key), private)


@pytest.fixture(params=["simple", "message", "ed25519"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def signer(citadel: Instance, form: str) -> Signer:
    return signer_of(citadel, form, citadel.key())


async def test_a_signed_request_is_answered(signer: Signer, stranger: Client, fleet: Start, model: str) -> None:
    server, body = fleet(model), json.dumps(chat(model)).encode()
    assert (await signer.ask(stranger, "POST", CHAT, body)).status == 200
    assert (await signer.ask(stranger, "GET", f"{USES}?a=1&b=2")).status == 200
    assert (await signer.ask(stranger, "HEAD", USES)).status == 200
    [reached] = server.calls()
    assert "signature" not in str(reached).lower()
    assert (await stranger.get(USES)).status == 401


async def test_it_shares_limits_addresses_and_scopes_with_its_key(
    citadel: Instance, stranger: Client, fleet: Start, model: str, form: str
) -> None:
    fleet(model)
    key, body = citadel.key(requests_per_minute=2), json.dumps(chat(model)).encode()
    signer = signer_of(citadel, form, key)
    said = [(await signer.ask(stranger, "POST", CHAT, body)).status, (await stranger.post(body, key=key)).status]
    assert [*said, (await signer.ask(stranger, "POST", CHAT, body)).status] == [200, 200, 429]
    for restriction, code in (
        ({"addresses": ["192.0.2.0/24"]}, "address_not_allowed"),
        ({"scopes": ["fleet.see"]}, "forbidden"),
    ):
        restricted = signer_of(citadel, form, citadel.key(**restriction))
        reply = await restricted.ask(stranger, "GET", USES)
        assert (reply.status, reply.code) == (403, code)


async def test_it_ends_with_its_key(citadel: Instance, stranger: Client, form: str) -> None:
    revoked, expiring = citadel.key(), citadel.key()
    signers = [signer_of(citadel, form, key) for key in (revoked, expiring)]
    for signer in signers:
        assert (await signer.ask(stranger, "GET", USES)).status == 200
    Key.objects.filter(key_id=expiring.split("_")[1]).update(expires=datetime.now(UTC) + timedelta(seconds=0.5))
    life.revoke(revoked.split("_")[1])
    deadline = time.monotonic() + 1.5 + HELD_UP
    while [(await signer.ask(stranger, "GET", USES)).status for signer in signers] != [401, 401]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("form", ["simple", "message"])
async def test_a_signing_secret_ends_with_the_secret_that_it_came_with(
    citadel: Instance, stranger: Client, form: str
) -> None:
    keys = [citadel.key()]
    for grace in (timedelta(days=1), timedelta()):
        keys.append(life.rotate(keys[0].split("_")[1], grace))
        citadel.settle()
        signers = [signer_of(citadel, form, key) for key in keys]
        assert len({signer.secret for signer in signers}) == len(keys)
        good = [200, 200] if grace else [401, 401, 200]
        assert [(await signer.ask(stranger, "GET", USES)).status for signer in signers] == good


async def test_a_nonce_is_good_once(signer: Signer, stranger: Client) -> None:
    headers = signer.headers("GET", USES)
    replies = [await stranger.get(USES, **headers) for _ in range(2)]
    assert [(reply.status, reply.code) for reply in replies] == [(200, ""), (401, "nonce_used")]
    again = await signer.ask(stranger, "GET", "/v1/models/x", nonce="n" * 16)
    assert again.status == 404
    assert (await signer.ask(stranger, "GET", USES, nonce="n" * 16)).code == "nonce_used"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "Hello"}]}),
        (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "stream": True}),
        (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/embeddings", {"input": "Hello"}),
    ],
    ids=["chat", "stream", "cached", "completion", "embedding"],
)
async def test_a_model_works_once_for_what_is_signed_once(
    citadel: Instance, stranger: Client, fleet: Start, model: str, form: str, path: str, body: dict[str, Any]
) -> None:
    server, key = fleet(model), citadel.key(requests_per_minute=2)
    signer, data = signer_of(citadel, form, key), json.dumps({"model": model, **body}).encode()
    headers = signer.headers("POST", path, data)
    replies = await asyncio.gather(*(stranger.ask("POST", path, data=data, **headers) for _ in range(20)))
    assert sorted(reply.code for reply in replies if reply.status != 200) == ["nonce_used"] * 19
    assert (await stranger.ask("POST", path, data=data, **headers)).code == "nonce_used"  # nor out of the cache
    assert len(server.calls()) == 1
    again = await signer.ask(stranger, "POST", path, data)  # what was refused was not counted
    assert (again.status, again.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    headers = signer.headers("POST", path, data)
    codes = [(await stranger.ask("POST", path, data=data, **headers)).code for _ in range(2)]
    assert codes == ["rate_limit_exceeded", "nonce_used"]


async def test_a_nonce_is_remembered_longer_than_clocks_differ_and_not_for_ever(
    citadel: Instance, signer: Signer, stranger: Client
) -> None:
    assert (await signer.ask(stranger, "GET", USES)).status == 200
    with redis.Redis.from_url(citadel.redis_url) as state:
        [name] = state.keys(f"access:nonce:{signer.secret.split('_')[1]}:*")
        assert 1490 <= state.ttl(name) <= 1501


async def test_only_so_many_nonces_of_a_key_are_remembered(
    citadel: Instance, signer: Signer, stranger: Client, fleet: Start, model: str
) -> None:
    """By whichever way they are used up, those that are known already aside."""
    server, body = fleet(model), json.dumps(chat(model)).encode()
    key_id, other = signer.secret.split("_")[1], signer_of(citadel, "simple", citadel.key())
    used, later = signer.headers("GET", USES), signer.headers("POST", CHAT, body)
    with redis.Redis.from_url(citadel.redis_url) as state:
        assert [(await stranger.get(USES, **used)).status for _ in range(3)] == [200, 401, 401]
        assert (await signer.ask(stranger, "POST", CHAT, body)).status == 200
        assert state.get(f"access:nonces:{key_id}") == b"2"
        assert 1790 <= state.ttl(f"access:nonces:{key_id}") <= 1800  # type: ignore[operator]
        state.set(f"access:nonces:{key_id}", MOST, ex=100)
        replies = [
            await signer.ask(stranger, "GET", "/health"),
            await signer.ask(stranger, "GET", USES),
            await signer.ask(stranger, "POST", CHAT, body.replace(b"Hello", b"Not known")),
            await stranger.ask("POST", CHAT, data=body, **later),
        ]
        assert {(reply.status, reply.code) for reply in replies} == {(429, "nonce_limit_exceeded")}
        assert all(80 < int(reply.headers["retry-after"]) <= 100 for reply in replies)
        assert len(state.keys(f"access:nonce:{key_id}:*")) == 2  # type: ignore[arg-type]
        assert (await stranger.get(USES, **used)).code == "nonce_used"
        assert (await other.ask(stranger, "GET", USES)).status == 200
        state.delete(f"access:nonces:{key_id}")
        said = [(await stranger.ask("POST", CHAT, data=body, **later)).status for _ in range(2)]
        assert said == [200, 401], "what was not taken may come again, once"
    assert len(server.calls()) <= 2


async def test_the_bound_of_nonces_is_exact_and_what_is_beyond_is_forgotten(citadel: Instance) -> None:
    async with redis_database(citadel, 3) as state:
        nonces = [nonce_of("key", b"%d" % number, 100, 3) for number in range(10)]
        said = await asyncio.gather(*(nonce.use_up(state) for nonce in nonces), return_exceptions=True)
        assert [type(error) for error in said] == [type(None)] * 3 + [LimitExceeded] * 7
        assert len(await state.call("KEYS", "access:nonce:*")) == 3
        again = await asyncio.gather(*(nonce.use_up(state) for nonce in nonces), return_exceptions=True)
        assert [type(error) for error in again] == [Unauthenticated] * 3 + [LimitExceeded] * 7
        await nonces[4]._replace(key_id="other").use_up(state)


@pytest.mark.parametrize(
    ("role", "requests", "others", "most"),
    [
        ("developer", 60, 600, 2 * 30 * 660),
        ("developer", 1, 1, LEAST),
        ("developer", 10**6, 600, MOST),
        ("developer", 0, 600, MOST),
        ("developer", 60, 0, MOST),
        ("server", 60, 600, MOST),
    ],
)
def test_a_key_may_bring_the_nonces_that_its_limits_let_it_use(
    role: str, requests: int, others: int, most: int
) -> None:
    assert most_of(Caller("k", "k", "t", role, None, Limits(requests)), others) == most


async def test_what_was_refused_uses_no_nonce_up(signer: Signer, stranger: Client) -> None:
    headers = signer.headers("GET", USES)
    assert (await stranger.get(f"{USES}?x", **headers)).code == "invalid_signature"
    assert (await stranger.get(USES, **headers)).status == 200


@pytest.mark.parametrize(
    ("off", "side"), [(-310, "s behind"), (310, "s ahead of"), (-(10**9), "behind"), (10**9, "ahead of")]
)
async def test_a_time_too_far_away_is_told(signer: Signer, stranger: Client, off: float, side: str) -> None:
    reply = await signer.ask(stranger, "GET", USES, at=time.time() + off)
    assert (reply.status, reply.code) == (401, "clock_skew")
    assert side in reply.json()["error"]["message"]


@pytest.mark.parametrize("off", [-280, 280])
async def test_clocks_may_differ_a_little(signer: Signer, stranger: Client, off: float) -> None:
    headers = signer.headers("GET", USES, at=time.time() + off)
    assert (await stranger.get(USES, **headers)).status == 200
    assert (await stranger.get(USES, **headers)).code == "nonce_used"


async def test_a_signature_says_itself_when_it_ends(citadel: Instance, stranger: Client) -> None:
    signer = signer_of(citadel, "message", citadel.key())
    now = int(time.time())
    assert (await signer.ask(stranger, "GET", USES, expires=now + 60)).status == 200
    over = await signer.ask(stranger, "GET", USES, expires=now - 1)
    assert (over.status, over.code) == (401, "invalid_signature")
    assert "expired" in over.json()["error"]["message"]


async def test_another_request_than_the_one_signed_is_refused(
    signer: Signer, stranger: Client, fleet: Start, model: str
) -> None:
    server, body = fleet(model), json.dumps(chat(model)).encode()
    for method, target, sent in (
        ("POST", CHAT, body + b" "),
        ("POST", CHAT, body.replace(b"Hello", b"Hallo")),
        ("POST", CHAT, b""),
        ("POST", f"{CHAT}?x=1", body),
        ("POST", "/v1/completions", body),
    ):
        headers = signer.headers("POST", CHAT, body)
        reply = await stranger.ask(method, target, data=sent, **headers)
        assert (reply.status, reply.code) == (401, "invalid_signature"), (method, target, sent)
    assert not server.calls()


async def test_another_method_than_the_one_signed_is_refused(signer: Signer, stranger: Client) -> None:
    reply = await stranger.ask("POST", KEYS, **signer.headers("GET", KEYS))
    assert (reply.status, reply.code) == (401, "invalid_signature")


async def test_what_another_secret_signed_is_refused(citadel: Instance, stranger: Client, form: str) -> None:
    one, other = (signer_of(citadel, form, citadel.key()) for _ in range(2))
    headers = one.headers("GET", USES)
    mine, theirs = one.secret.split("_")[1], other.secret.split("_")[1]
    headers = {name: value.replace(mine, theirs) for name, value in headers.items()}
    unknown = {name: value.replace(theirs, "A" * 10) for name, value in headers.items()}
    replies = [await stranger.get(USES, **bent) for bent in (headers, unknown)]
    assert {(reply.status, reply.code) for reply in replies} == {(401, "invalid_signature")}
    assert replies[0].body == replies[1].body, "which tells nobody what keys there are"
    assert one.secret.encode() not in replies[0].body


async def test_an_algorithm_is_not_swapped(citadel: Instance, stranger: Client) -> None:
    """A public key is no secret: what is signed with it as one proves nothing."""
    signer = signer_of(citadel, "ed25519", citadel.key())
    assert signer.private
    public = signer.private.public_key().public_bytes_raw()
    key_id = signer.secret.split("_")[1]
    for secret in (public, public.hex().encode(), str(Key.objects.get(key_id=key_id).public_key).encode()):
        headers = signing.message(secret, "GET", citadel.url + USES, keyid=key_id)
        assert (await stranger.get(USES, **headers)).code == "invalid_signature"
    without = signer_of(citadel, "message", citadel.key())
    swapped = await without.ask(stranger, "GET", USES, alg="ed25519")
    assert swapped.code == "invalid_signature"


async def test_a_key_in_the_request_counts_before_a_signature(
    signer: Signer, citadel: Instance, stranger: Client
) -> None:
    headers = signer.headers("GET", USES)
    assert (await stranger.get(USES, key="nonsense", **headers)).code == "invalid_api_key"
    assert (await stranger.get(USES, **headers)).status == 200


@pytest.mark.parametrize(
    "more", [{"signature": "x"}, {"signature-input": "x"}, {"x-citadel-signature": "x"}, {"x-citadel-key": "x"}]
)
async def test_half_a_signature_is_told(stranger: Client, more: dict[str, str]) -> None:
    reply = await stranger.get(USES, **more)
    assert (reply.status, reply.code) == (401, "invalid_signature")


async def test_a_header_that_comes_twice_is_refused(citadel: Instance) -> None:
    secret = life.signing_secret(citadel.key())
    citadel.settle()
    good = signing.simple(secret, "GET", USES)
    async with aiohttp.ClientSession(citadel.url) as session:
        for name, value in good.items():
            async with session.get(USES, headers=[*good.items(), (name, value)]) as answer:
                assert answer.status == 401
        async with session.get(USES, headers=good) as answer:
            assert answer.status == 200


async def test_a_signed_request_lends_no_token(signer: Signer, stranger: Client) -> None:
    reply = await signer.ask(stranger, "POST", "/api/v1/auth/token", b"{}")
    assert (reply.status, reply.code) == (403, "key_needed")


async def test_a_socket_is_opened_by_a_signature_once_and_ends_with_its_key(citadel: Instance) -> None:
    key = citadel.key(role="operator")
    signer = signer_of(citadel, "message", key)
    headers = signer.headers("GET", "/ws/console", covered=("@method", "@target-uri"))
    headers.pop("content-digest")
    async with watching(citadel, headers=headers) as socket:
        await ready(socket)
        assert await refused(citadel, headers) == (401, "nonce_used")
        await asyncio.sleep(1.5)
        assert not socket.link.closed
        life.revoke(key.split("_")[1])
        assert await socket.closed() == 1008


async def test_what_a_private_key_has_opened_outlasts_the_secret_and_ends_with_the_public_key(
    citadel: Instance, client: Client
) -> None:
    key = citadel.key(role="operator")
    signer, path = signer_of(citadel, "ed25519", key), f"/api/v1/keys/{key.split('_')[1]}"
    headers = signer.headers("GET", "/ws/console", covered=("@method", "@target-uri"))
    headers.pop("content-digest")
    async with watching(citadel, headers=headers) as socket:
        await ready(socket)
        turned = await client.post({"grace": 0}, f"{path}/rotate", key=citadel.admin_key)
        assert turned.status == 200
        await asyncio.sleep(2)
        assert not socket.link.closed, "rotation leaves the public key as it is"
        changed = await client.ask("PATCH", path, data=b'{"public_key": null}', key=citadel.admin_key)
        assert changed.status == 200
        assert await socket.closed() == 1008


@pytest.mark.parametrize("form", ["simple", "message"], indirect=True)
async def test_who_signs_introspects_too(citadel: Instance, signer: Signer, stranger: Client) -> None:
    token = (await stranger.ask("POST", "/api/v1/auth/token", key=citadel.key())).json()["access_token"]
    asked, kind = f"token={token}".encode(), "application/x-www-form-urlencoded"
    headers = signer.headers("POST", "/api/v1/oauth/introspect", asked) | {"content_type": kind}
    reply = await stranger.ask("POST", "/api/v1/oauth/introspect", data=asked, **headers)
    assert (reply.status, reply.json()) == (200, {"active": False}), "it is another's"


async def test_the_api_shows_a_signing_secret_with_a_key_and_never_again(
    citadel: Instance, client: Client, stranger: Client
) -> None:
    team = f"team-{secrets.token_hex(4)}"
    citadel.key(team)
    made = (await client.post({"name": "n", "team": team}, "/api/v1/keys", key=citadel.admin_key)).json()
    path = f"/api/v1/keys/{made['key_id']}"
    assert made["signing_secret"] == life.signing_secret(made["key"])
    turned = (await client.post({"grace": 0}, f"{path}/rotate", key=citadel.admin_key)).json()
    citadel.settle()
    assert turned["signing_secret"] not in (made["signing_secret"], None)
    signer = Signer(citadel.url, "message", turned["signing_secret"])
    assert (await signer.ask(stranger, "GET", USES)).status == 200
    assert b"cts_" not in (await client.get(path, key=citadel.admin_key)).body


async def test_a_public_key_is_given_by_who_manages_the_key(
    citadel: Instance, client: Client, stranger: Client
) -> None:
    team = f"team-{secrets.token_hex(4)}"
    owner, private = citadel.key(team, role="owner"), Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    made = (await client.post({"name": "n", "public_key": pem}, "/api/v1/keys", key=owner)).json()
    assert made["public_key"] in pem
    citadel.settle()
    signer = Signer(citadel.url, "ed25519", made["signing_secret"], private)
    assert (await signer.ask(stranger, "GET", USES)).status == 200
    wrong = await client.post({"name": "n", "public_key": "nonsense"}, "/api/v1/keys", key=owner)
    assert (wrong.status, wrong.json()["error"]["param"]) == (400, "public_key")
    path = f"/api/v1/keys/{made['key_id']}"
    gone = await client.ask("PATCH", path, data=b'{"public_key": null}', key=owner)
    assert gone.json()["public_key"] is None
    citadel.settle()
    assert (await signer.ask(stranger, "GET", USES)).code == "invalid_signature"


# With two workers.


@pytest.fixture
async def made(proxied: Instance, coming: Coming) -> dict[str, Any]:
    async with coming() as client:
        team = f"team-{secrets.token_hex(4)}"
        await client.post({"slug": team, "name": team}, "/api/v1/teams", key=proxied.admin_key)
        reply = await client.post(
            {"name": "n", "team": team, "limits": {"requests_per_minute": 0, "concurrent": 0}},
            "/api/v1/keys",
            key=proxied.admin_key,
        )
    assert reply.status == 200, reply.body
    proxied.settle()
    row: dict[str, Any] = reply.json()
    return row


@pytest.mark.parametrize("form", ["simple", "message"])
async def test_one_nonce_sent_a_hundred_times_at_once_is_taken_once(
    proxied: Instance, coming: Coming, made: dict[str, Any], form: str
) -> None:
    signer = Signer(proxied.url, form, made["signing_secret"])
    headers = signer.headers("GET", USES)
    async with coming() as client:
        replies = await asyncio.gather(*(client.get(USES, **headers) for _ in range(100)))
    assert sorted(reply.code for reply in replies) == [""] + ["nonce_used"] * 99


@pytest.mark.parametrize("form", ["simple", "message"])
async def test_without_redis_nothing_signed_is_taken_and_keys_are(
    proxied: Instance, coming: Coming, made: dict[str, Any], model: str, form: str
) -> None:
    signer = Signer(proxied.url, form, made["signing_secret"])
    pid = int((proxied.home / "run" / "redis.pid").read_text())
    body = json.dumps(chat(model)).encode()
    async with coming() as client:
        with Fleet.start(models=[model]) as server:
            port = int(server.url.removesuffix("/").rpartition(":")[2])
            said = {"id": model, "hostname": "127.0.0.1", "port": port, "models": [model]}
            assert (await client.post(said, "/orchestration/servers/register", key=proxied.admin_key)).status == 200
            os.kill(pid, signal.SIGSTOP)
            try:
                for asked in (("GET", USES), ("POST", CHAT, body)):
                    reply = await signer.ask(client, *asked)
                    assert (reply.status, reply.code) == (503, "auth_unavailable")
                    assert int(reply.headers["retry-after"]) >= 1
                assert (await client.get(USES, key=made["key"])).status == 200
                assert (await client.post(chat(model), key=made["key"])).status == 200
            finally:
                os.kill(pid, signal.SIGCONT)
            await client.ask("DELETE", f"/orchestration/servers/{model}", key=proxied.admin_key)
        deadline = time.monotonic() + 10 + HELD_UP
        while (await signer.ask(client, "GET", USES)).status != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
