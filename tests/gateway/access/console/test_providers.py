"""People of an OpenID provider: who comes in, as what, and that nobody becomes somebody else."""

import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import requests

from apps.gateway.access.console import outgoing
from citadel.sections import Config, SecuritySection
from tests.gateway.access.console.provider import Provider
from tests.gateway.access.console.visitor import LOGIN, Visitor, account, error
from tests.instance import Instance

START = "/admin/oidc/main/login/"


def come(visitor: Visitor) -> httpx.Response:
    """What the console says when the provider has sent somebody back."""
    asked = visitor.send_form(f"{START}?process=login")
    assert asked.status_code == 302, asked.text
    sent_back = httpx.get(asked.headers["location"])
    return visitor.get(sent_back.headers["location"])


def person(**more: Any) -> dict[str, Any]:
    return {"sub": secrets.token_hex(4), "preferred_username": f"o-{secrets.token_hex(4)}", **more}


@pytest.fixture(autouse=True)
def _clean(guarded: Instance) -> Iterator[None]:
    from django.contrib.auth.models import User

    there = set(User.objects.values_list("pk", flat=True))
    yield
    User.objects.exclude(pk__in=there).delete()


def accounts(name: str) -> list[Any]:
    from django.contrib.auth.models import User

    return list(User.objects.filter(username=name))


def test_who_has_a_role_comes_in_with_it(visitor: Visitor, provider: Provider) -> None:
    who = person(groups=["staff", "it-operators"])
    provider.say(who)
    assert "Sign in with Main" in visitor.get(LOGIN).text
    assert come(visitor).headers["location"] == "/admin/"
    assert visitor.is_in(), "the second factor is the provider's matter"
    [made] = accounts(who["preferred_username"])
    assert (made.is_staff, made.is_superuser, made.has_usable_password()) == (True, False, False)
    assert [group.name for group in made.groups.all()] == ["operator"]


def test_the_role_is_the_one_of_today_and_may_be_none(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    who = person(groups="it-operators")
    for groups, role in (("it-operators", "operator"), (["it-audit"], "auditor"), ([], None), ("it-audit", "auditor")):
        provider.say({**who, "groups": groups})
        answer = come(visitor)
        [made] = accounts(who["preferred_username"])
        assert [group.name for group in made.groups.all()] == ([role] if role else [])
        assert (made.is_staff, visitor.is_in()) == (bool(role), bool(role))
        assert role or (answer.status_code, error(answer)[:12]) == (403, "You are know")


def test_who_has_none_gets_no_account(visitor: Visitor, provider: Provider) -> None:
    who = person(groups=["it-oper", "x"], email="somebody@example.org")
    provider.say(who)
    answer = come(visitor)
    assert (answer.status_code, visitor.is_in()) == (403, False)
    assert not accounts(who["preferred_username"])


def test_nobody_becomes_who_has_the_same_name_or_address(visitor: Visitor, provider: Provider) -> None:
    with account("admin", email="boss@example.org", is_superuser=True) as boss:
        who = person(groups="it-audit", email=boss.email, email_verified=True)
        provider.say({**who, "preferred_username": boss.username})
        assert come(visitor).headers["location"] == "/admin/"
        assert visitor.get("/admin/auth/user/").status_code == 403
        boss.refresh_from_db()
        assert boss.check_password("correct horse battery staple")
        assert not boss.socialaccount_set.exists()


def test_nobody_adds_a_provider_to_an_account_that_is_signed_in(visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups="it-audit"))
    asked = visitor.send_form(f"{START}?process=connect")
    answer = visitor.get(httpx.get(asked.headers["location"]).headers["location"])
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"exp": 1},
        {"sub": None},
        {"sub": ""},
        {"beside": {"sub": "another", "groups": "it-operators"}},
    ],
    ids=str,
)
def test_words_that_do_not_fit_together_open_nothing(
    visitor: Visitor, provider: Provider, wrong: dict[str, Any]
) -> None:
    who = person(groups="it-operators")
    provider.say(who, **wrong)
    answer = come(visitor)
    assert answer.status_code in {401, 403}
    assert not visitor.is_in()
    assert not accounts(who["preferred_username"])


def test_an_answer_that_nobody_asked_for_opens_nothing(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups="it-operators"))
    for query in ("", "?code=x", "?code=x&state=y", "?error=access_denied", "?error=x&state=y"):
        assert visitor.get(f"{START}callback/{query}").status_code in {302, 401}
    asked = visitor.send_form(f"{START}?process=login")
    back = httpx.get(asked.headers["location"]).headers["location"]
    with Visitor(guarded) as other:
        assert other.get(back).status_code == 401, "another browser's"
    assert visitor.get(back).headers["location"] == "/admin/"
    assert visitor.get(back).status_code == 401, "twice"


def test_what_is_asked_says_no_more_than_it_must(visitor: Visitor, provider: Provider) -> None:
    asked = parse_qs(urlsplit(visitor.send_form(f"{START}?process=login").headers["location"]).query)
    assert sorted(asked["scope"][0].split()) == ["email", "openid", "profile"]
    assert asked["redirect_uri"] == [f"{visitor.base_url}{START[1:]}callback/".replace("//admin", "/admin")]
    assert visitor.get("/admin/oidc/another/login/").status_code == 404


class Listener:
    """Counts who connects, and answers with what it is given."""

    def __init__(self, answer: bytes):
        self.connections = 0
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with link:
                link.recv(65536)
                link.sendall(self._answer)

    def close(self) -> None:
        self._socket.close()


def allow(monkeypatch: pytest.MonkeyPatch, *networks: str) -> None:
    rules = Config(home="/nowhere", security=SecuritySection(issuer_networks=networks))  # type: ignore[arg-type]
    monkeypatch.setattr(outgoing.config, "load", lambda: rules)


HOSTS = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "[::ffff:127.0.0.1]",
    "[::1]",
    "0.0.0.0",
]
ELSEWHERE = ["169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "192.168.1.1", "[fe80::1]", "100.100.100.200"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", [*HOSTS, *ELSEWHERE])
def test_only_addresses_that_may_be_are_connected_to(monkeypatch: pytest.MonkeyPatch, host: str, scheme: str) -> None:
    allow(monkeypatch, "public")
    listener = Listener(b"")
    with outgoing.Session() as session, pytest.raises(requests.RequestException):
        session.get(f"{scheme}://{host}:{listener.port}/.well-known/openid-configuration")
    listener.close()
    assert not listener.connections


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "http://", "x"])
def test_only_http_is_spoken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    allow(monkeypatch, "loopback", "private", "public")
    with outgoing.Session() as session, pytest.raises(requests.RequestException):
        session.get(url)


def test_what_is_connected_to_is_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name may lead elsewhere a moment later."""
    allow(monkeypatch, "loopback")
    listener = Listener(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    asked: list[str] = []

    def look_up(host: str, *_args: Any, **_options: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: (look_up if host == "moves.example" else real)(host, *a, **o)
    )
    with outgoing.Session() as session:
        assert session.get(f"http://moves.example:{listener.port}/").json() == {}
    listener.close()
    assert asked == ["moves.example"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000001\r\n\r\n" + b"x" * 1_000_001,
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=["redirect", "large", "nonsense", "nothing"],
)
def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    allow(monkeypatch, "loopback")
    listener = Listener(answer)
    with outgoing.Session() as session, pytest.raises(requests.RequestException):
        session.post(f"http://127.0.0.1:{listener.port}/", data={"client_secret": "x"})
    listener.close()
    assert listener.connections == 1
