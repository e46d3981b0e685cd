"""What stands where a credential is carried and is none gets a 401, as bytes on a socket: no client is in between."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from django.conf import settings

from apps.gateway.access.keys.shape import mint
from tests.faults.client import Wire, wired
from tests.gateway.access.conftest import ANYBODY, PROXY
from tests.gateway.client import CHAT
from tests.held_up import HELD_UP
from tests.instance import Instance

SIZE = 100 * 1024
VALUES = {
    "100 KB": b"x" * SIZE,
    "a key of 100 KB": mint()[0].encode() + b"x" * SIZE,
    "a token of 100 KB": b"eyJhbGciOiJIUzI1NiJ9." + b"x" * SIZE + b".x",
    "SQL": b"' OR '1'='1' --",
    "more SQL": b"x'); DROP TABLE gateway_key; --",
    "NUL": b"ctd_\0\0\0",
    "a key and NUL": mint()[0].encode() + b"\0",
    "another control character": b"ctd_\x01",
    "non-ASCII": "ctd_schlüssel_鍵".encode(),
    "no UTF-8": b"\xff\xfe\x80",
}
OAUTH = [f"/api/v1/oauth/{name}" for name in ("token", "introspect", "revoke")]
TOKEN, *ABOUT = OAUTH
SOCKET = {
    "connection": b"Upgrade",
    "upgrade": b"websocket",
    "sec-websocket-version": b"13",
    "sec-websocket-key": b"dGhlIHNhbXBsZSBub25jZQ==",
}

Request = tuple[str, str, dict[str, bytes], bytes]
"""Method, address, headers, body."""
Place = Callable[[bytes], Request]


@dataclass
class Header:
    """A header of a request that has others beside it."""

    name: str
    method: str = "GET"
    path: str = "/v1/models"
    before: bytes = b""
    """What stands before the value."""
    others: Callable[[], dict[str, bytes]] = dict
    body: bytes = b""

    def __call__(self, value: bytes) -> Request:
        return self.method, self.path, {**self.others(), self.name: self.before + value}, self.body

    def __str__(self) -> str:
        return f"{self.name} {self.before.decode()}{self.method} {self.path}"


def simply_signed() -> dict[str, bytes]:
    return {
        "x-citadel-key": b"A" * 10,
        "x-citadel-timestamp": b"%d" % time.time(),
        "x-citadel-nonce": secrets.token_hex(16).encode(),
        "x-citadel-signature": b"0" * 64,
    }


def message_signed() -> dict[str, bytes]:
    said = f'sig1=("@method" "@target-uri");created={int(time.time())};keyid="AAAAAAAAAA";nonce="{"n" * 16}"'
    return {"signature-input": said.encode(), "signature": b"sig1=:AAAA:"}


def webhook_signed() -> dict[str, bytes]:
    return {"webhook-id": b"m", "webhook-timestamp": b"%d" % time.time(), "webhook-signature": b"v1,AAAA"}


FORM = {"content-type": b"application/x-www-form-urlencoded"}


@dataclass
class ByteSequence(Header):
    """A header that holds bytes in base64 (RFC 9651, 3.3.5), as that of a certificate is meant to."""

    def __call__(self, value: bytes) -> Request:
        return super().__call__(b":" + base64.b64encode(value) + b":")

    def __str__(self) -> str:
        return f"base64 in {super().__str__()}"


@dataclass
class Field:
    """A field of a form, written as clients do, or as it is."""

    name: str
    path: str
    encoded: bool

    def __call__(self, value: bytes) -> Request:
        told = quote_from_bytes(value, safe="").encode() if self.encoded else value
        fields = {"grant_type": b"client_credentials", "client_id": b"a", "client_secret": b"b", self.name: told}
        return "POST", self.path, FORM, b"&".join(b"%b=%b" % (name.encode(), text) for name, text in fields.items())

    def __str__(self) -> str:
        return f"{self.name} {'encoded' if self.encoded else 'as it is'} {self.path}"


@dataclass
class Basic:
    """A half of what HTTP Basic carries."""

    path: str
    is_secret: bool

    def __call__(self, value: bytes) -> Request:
        pair = b"a:" + value if self.is_secret else value + b":a"
        return "POST", self.path, {**FORM, "authorization": b"Basic " + base64.b64encode(pair)}, b"token=x"

    def __str__(self) -> str:
        return f"Basic {'secret' if self.is_secret else 'id'} {self.path}"


WHERE: list[tuple[str, str, Callable[[], dict[str, bytes]], bytes]] = [
    ("GET", "/v1/models", dict, b""),
    ("POST", CHAT, dict, b"{}"),
    ("GET", "/metrics", dict, b""),
    ("POST", "/api/v1/auth/token", dict, b""),
    ("POST", "/webhooks/alertmanager", dict, b"{}"),
    ("GET", "/ws/console", SOCKET.copy, b""),
]
PLACES: list[Place] = [
    *(
        Header(name, method, path, before, others, body)
        for method, path, others, body in WHERE
        for name, before in (("authorization", b"Bearer "), ("authorization", b""), ("x-api-key", b""))
    ),
    Header("authorization", "POST", "/webhooks/alertmanager", b"Bearer whk_", body=b"{}"),
    *(Header(name, others=simply_signed) for name in simply_signed()),
    *(Header(name, others=message_signed) for name in message_signed()),
    *(Header(name, "GET", "/ws/console", others=lambda: SOCKET | simply_signed()) for name in simply_signed()),
    *(Header(name, "POST", "/webhooks/HOOK", others=webhook_signed, body=b"{}") for name in webhook_signed()),
    *(Header("authorization", "POST", path, before, FORM.copy) for path in OAUTH for before in (b"Bearer ", b"Basic ")),
    *(Header("x-api-key", "POST", path, others=FORM.copy) for path in OAUTH),
    *(Basic(path, is_secret) for path in OAUTH for is_secret in (True, False)),
    *(Field("client_secret", path, encoded) for path in OAUTH for encoded in (True, False)),
    *(Field("client_id", TOKEN, encoded) for encoded in (True, False)),
]
REPORTED: list[Place] = [
    carries("client-cert", method, path, others=others, body=body)
    for method, path, others, body in WHERE
    for carries in (Header, ByteSequence)
]
"""Where a proxy says who has shown it a certificate."""


@pytest.fixture(scope="module")
def hook(citadel: Instance) -> Iterator[str]:
    """A type of webhooks that have a signature."""
    from apps.orchestration.models import Hook
    from apps.orchestration.webhooks.credentials import new_secret

    made = Hook.objects.create(name=f"hook-{secrets.token_hex(4)}", fields=["x"])
    new_secret(made, settings.SECRET_KEY)
    yield made.name
    made.delete()


async def ask(wire: Wire, method: str, path: str, headers: dict[str, bytes], body: bytes) -> tuple[int, dict[str, Any]]:
    lines = [f"{method} {path} HTTP/1.1".encode(), b"host: citadel"]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    if method == "POST":
        lines.append(b"content-length: %d" % len(body))
    await wire.send(b"\r\n".join([*lines, b"", body]))
    status, told, content = await wire.answer()
    assert "www-authenticate" in told or status != 401
    return status, json.loads(content)


@pytest.mark.parametrize("place", PLACES, ids=str)
async def test_what_is_no_credential_is_a_401_wherever_it_stands(citadel: Instance, hook: str, place: Place) -> None:
    for what, value in VALUES.items():
        method, path, headers, body = place(value)
        async with wired(citadel.url) as wire:
            status, told = await ask(wire, method, path.replace("HOOK", hook), headers, body)
        assert status == 401, (what, told)
        if isinstance(told["error"], str):
            assert (path in OAUTH, told["error"]) in ((True, "invalid_client"), (True, "invalid_token")), (what, told)
        else:
            assert set(told["error"]) == {"message", "type", "param", "code"}
            assert told["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("place", REPORTED, ids=str)
async def test_so_is_what_a_proxy_reports_as_a_certificate(proxied: Instance, place: Place) -> None:
    """Whoever reports it: from others than trusted proxies it is no credential, and so there is none."""
    for what, value in VALUES.items():
        for address in (PROXY, ANYBODY):
            async with wired(proxied.url, address) as wire:
                status, told = await ask(wire, *place(value))
            assert (status, told["error"]["type"]) == (401, "invalid_request_error"), (what, address, told)


@pytest.mark.parametrize(
    "more", [b'"' + b"\\000" * 32 + b'"', b"x" * 32], ids=["NUL as cookies write it", "no session"]
)
async def test_so_is_a_cookie_that_opens_no_socket(citadel: Instance, more: bytes) -> None:
    origin = {**SOCKET, "host": b"127.0.0.1", "origin": b"http://127.0.0.1"}
    for what, value in (VALUES | {"more": more}).items():
        cookie = settings.SESSION_COOKIE_NAME.encode() + b"=" + value
        lines = [b"GET /ws/console HTTP/1.1", *(b"%b: %b" % (n.encode(), v) for n, v in origin.items())]
        async with wired(citadel.url) as wire:
            await wire.send(b"\r\n".join([*lines, b"cookie: " + cookie, b"", b""]))
            status, _, content = await wire.answer()
        assert (status, json.loads(content)["error"]["code"]) == (401, "invalid_api_key"), what


async def test_the_console_takes_such_a_cookie_for_none(citadel: Instance) -> None:
    for value in (b'"' + b"\\000" * 32 + b'"', b"\xff" * 32, b"'" * 32, b"x" * SIZE):
        cookie = settings.SESSION_COOKIE_NAME.encode() + b"=" + value
        async with wired(citadel.url) as wire:
            await wire.send(b"GET /admin/ HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: " + cookie + b"\r\n\r\n")
            assert (await wire.head())[0] == 302


@pytest.mark.parametrize("pieces", [1, SIZE // 4000])
@pytest.mark.parametrize("path", [b"/admin/", b"/ws/console"])
async def test_escapes_in_cookies_hold_up_nobody(citadel: Instance, path: bytes, pieces: int) -> None:
    """Python reads such a value in a time that grows with the square of its length: minutes for this one."""
    upgrade = b"".join([name.encode() + b": " + value + b"\r\n" for name, value in SOCKET.items()])
    cookie = b"; ".join([b'a%d="%b"' % (number, b"\\" * (SIZE // pieces)) for number in range(pieces)])
    async with wired(citadel.url) as wire:
        head = b"GET " + path + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: " + cookie + b"\r\n"
        await wire.send(head + (upgrade if path != b"/admin/" else b"") + b"\r\n")
        status = (await asyncio.wait_for(wire.head(), 5 + HELD_UP))[0]
    assert status == (302 if path == b"/admin/" else 401)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"authorization: Bearer " + b"x" * 30_000, b"x" * (SIZE - 30_000) + b"\0"),
        (b"authorization: Bearer ctd_", b"x\0y"),
        (b"x-ap", b"i-key: ctd_\0"),
    ],
    ids=["100 KB", "a short one", "in its name"],
)
async def test_so_is_one_with_a_nul_that_comes_in_pieces(citadel: Instance, before: bytes, after: bytes) -> None:
    async with wired(citadel.url) as wire:
        for kept in range(2):  # what came in pieces before is forgotten
            await wire.send(b"GET /health/live HTTP/1.1\r\nhost: citadel\r\nx-other: a")
            await asyncio.sleep(0.1)
            await wire.send(b"b\r\n\r\n")
            assert (await wire.answer())[0] == 200, kept
        await wire.send(b"GET /v1/models HTTP/1.1\r\nhost: citadel\r\n" + before)
        await asyncio.sleep(0.1)
        await wire.send(after + b"\r\n\r\n")
        status, told, content = await wire.answer()
    assert (status, json.loads(content)["error"]["code"]) == (401, "invalid_api_key")
    assert "www-authenticate" in told


async def test_a_credential_before_says_nothing_of_what_comes_after(citadel: Instance) -> None:
    async with wired(citadel.url) as wire:
        await wire.send(b"GET /health/live HTTP/1.1\r\nhost: citadel\r\nauthorization: Bea")
        await asyncio.sleep(0.1)
        await wire.send(b"rer x\r\n\r\n")
        assert (await wire.answer())[0] == 200
        await wire.send(b"GET /v1/models HTTP/1.1\r\nhost: citadel\r\nx-other: a")
        await asyncio.sleep(0.1)
        await wire.send(b"\0b\r\n\r\n")
        status, _, content = await wire.answer()
    assert (status, json.loads(content)["error"]["code"]) == (400, "invalid_http")


async def test_a_control_character_elsewhere_is_no_http(citadel: Instance) -> None:
    for header in (b"x-other: a\0b", b"x-authorization: a\0b", b"accept: authorization: \0"):
        async with wired(citadel.url) as wire:
            await wire.send(b"GET /v1/models HTTP/1.1\r\nhost: citadel\r\n" + header + b"\r\n\r\n")
            status, _, content = await wire.answer()
        assert (status, json.loads(content)["error"]["code"]) == (400, "invalid_http")


async def test_who_is_known_hears_what_is_wrong_with_the_form(citadel: Instance) -> None:
    key = citadel.key()
    await asyncio.to_thread(citadel.settle)
    proof = base64.b64encode(f"{key.split('_')[1]}:{key}".encode())
    for path in OAUTH:
        for token in (b"x" * SIZE, b"\xff", b"a b"):
            headers = {**FORM, "authorization": b"Basic " + proof}
            async with wired(citadel.url) as wire:
                status, told = await ask(wire, "POST", path, headers, b"token=" + token)
            assert (status, told["error"]) == (400, "invalid_request")
