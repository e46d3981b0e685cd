"""Somebody who uses the console over HTTP, as a browser without scripts does."""

import base64
import hmac
import re
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.instance import Instance

LOGIN, CODE, FACTORS = "/admin/login/", "/admin/second-factor/authenticate/", "/admin/second-factor/"
PASSWORD = "correct horse battery staple"
ERROR = re.compile(r'class="errornote">\s*(.*?)\s*</p>|class="errorlist[^>]*><li>(.*?)</li>', re.DOTALL)


class Visitor(httpx.Client):
    """One browser, at an address of its own."""

    used = ""

    def __init__(self, citadel: Instance, address: str | None = None):
        self.address = address or f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
        super().__init__(base_url=citadel.url, headers={"x-forwarded-for": self.address}, timeout=30)

    def send_form(self, path: str, **fields: Any) -> httpx.Response:
        """What comes of a form, with the token that its page has."""
        for page in (LOGIN, "/admin/"):  # to the former nobody comes who is signed in
            if "csrftoken" not in self.cookies:
                self.get(page)
        return self.post(path, data={**fields, "csrfmiddlewaretoken": self.cookies["csrftoken"]})

    def sign_in(self, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        """What comes of a name and a password."""
        return self.send_form(LOGIN, username=name, password=password, **more)

    def set_up(self) -> tuple[str, list[str]]:
        """An authenticator app for who is signed in, with the code `used`: its secret and the recovery codes."""
        page = f"{FACTORS}totp/activate/"
        self.send_form(f"/admin/confirm/?next={page}", password=PASSWORD, next=page)
        [secret] = re.findall(r'value="([A-Z2-7]{32})"', self.get(page).text)
        self.used = code(secret)
        shown = self.send_form(page, code=self.used)
        assert shown.headers["location"] == f"{FACTORS}recovery-codes/", shown.text
        return secret, re.findall(r"\b\d{10}\b", self.get(shown.headers["location"]).text)

    @property
    def cookie(self) -> str:
        """As a WebSocket's request has it."""
        return f"sessionid={self.cookies['sessionid']}"

    def is_in(self) -> bool:
        """Whether the console opens."""
        return self.get("/admin/").status_code == 200


def error(answer: httpx.Response) -> str:
    """What a page says is wrong."""
    found = ERROR.search(answer.text)
    return (found[1] or found[2]) if found else ""


def code(secret: str, ahead: int = 0) -> str:
    """What an authenticator app shows now, or so many half minutes ahead (RFC 6238)."""
    counter = struct.pack(">Q", int(time.time()) // 30 + ahead)
    digest = hmac.digest(base64.b32decode(secret), counter, "sha1")
    [number] = struct.unpack_from(">I", digest, digest[-1] & 15)
    return f"{(number & 0x7FFFFFFF) % 1_000_000:06}"


@contextmanager
def account(role: str | None = None, *, is_staff: bool = True, **fields: Any) -> Iterator[Any]:
    """Somebody with a password, and the group of a role; an administrator by a role of that name."""
    from django.contrib.auth.models import Group, User

    name = f"p-{secrets.token_hex(4)}"
    made = User.objects.create_user(name, password=PASSWORD, is_staff=is_staff, **fields)
    if role:
        made.groups.add(Group.objects.get(name=role))
    yield made
    made.delete()
