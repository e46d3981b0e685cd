"""Where providers are asked: only where it is allowed, at the address that was checked, and for no more than needed."""

import contextlib
import re
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from apps.gateway.access.console import outgoing
from citadel.sections import Config, SecuritySection
from tests.forbidden_addresses import EVERYTHING, HOSTS, NEVER, REFUSAL, URLS, at_port, trap

TLS = Path(__file__).parents[2] / "inference" / "tls"


class Listener:
    """Counts who connects, and answers with what it is given."""

    def __init__(self, answer: bytes, tls: ssl.SSLContext | None = None):
        self.connections = 0
        self._tls = tls
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
            with link, contextlib.suppress(OSError):
                wire = self._tls.wrap_socket(link, server_side=True) if self._tls else link
                wire.recv(65536)
                wire.sendall(self._answer)

    def close(self) -> None:
        self._socket.close()


def allow(monkeypatch: pytest.MonkeyPatch, *networks: str) -> None:
    rules = Config(home="/nowhere", security=SecuritySection(issuer_networks=networks))  # type: ignore[arg-type]
    monkeypatch.setattr(outgoing.config, "load", lambda: rules)


def complaint(method: str, url: str) -> str:
    """What is said of an address that is not asked."""
    with outgoing.Session() as session, pytest.raises(requests.RequestException) as refused:
        session.request(method, url)
    return str(refused.value)


def leads(monkeypatch: pytest.MonkeyPatch, name: str, look_up: Any) -> None:
    """A name that the resolver is asked for."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **o: (look_up if host == name else real)(host, *a, **o))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_only_addresses_that_may_be_are_connected_to(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    allow(monkeypatch, "public")
    with trap() as met:
        for host in HOSTS:
            told = complaint("GET", f"{scheme}://{host}:{met.port}/.well-known/openid-configuration")
            assert re.search(REFUSAL, told), host
            assert not met.was_met(), host


def test_whatever_the_setting_says_some_are_never_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, *EVERYTHING)
    with trap() as met:
        for host in NEVER:
            assert re.search(REFUSAL, complaint("POST", f"https://{host}:{met.port}/token")), host
        assert not met.was_met()


def test_only_http_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with nobody's name and password in the address."""
    allow(monkeypatch, *EVERYTHING)
    with trap() as met:
        for url in URLS:
            assert complaint("GET", at_port(url, met.port)), url
            assert not met.was_met(), url


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, "loopback")
    with trap() as met:
        head = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{met.port}/\r\ncontent-length: 0\r\n\r\n"
        listener = Listener(head.encode())
        with outgoing.Session() as session, pytest.raises(requests.RequestException, match="as it is"):
            session.post(f"http://127.0.0.1:{listener.port}/token", data={"client_secret": "x"})
        listener.close()
        assert listener.connections == 1
        assert not met.was_met()


def test_what_is_connected_to_is_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name may lead elsewhere a moment later."""
    allow(monkeypatch, "loopback")
    listener = Listener(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    asked: list[str] = []

    def look_up(host: str, *_args: Any, **_options: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]

    leads(monkeypatch, "moves.example", look_up)
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


@pytest.mark.parametrize(("name", "is_its_own"), [("localhost", True), ("another.example", False)])
def test_the_name_is_the_one_that_tls_verifies(monkeypatch: pytest.MonkeyPatch, name: str, is_its_own: bool) -> None:
    """Though the connection goes to an address, for which the certificate is good too."""
    allow(monkeypatch, "loopback")
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    listener = Listener(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", tls)
    leads(monkeypatch, name, lambda *_a, **_o: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))])
    with outgoing.Session() as session:
        if is_its_own:
            assert session.get(f"https://{name}:{listener.port}/").json() == {}
        else:
            with pytest.raises(requests.exceptions.SSLError):
                session.get(f"https://{name}:{listener.port}/")
    listener.close()
