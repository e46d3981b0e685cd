"""`bin/manage agent`: a program of its own on a machine without Citadel, which holds out through Citadel's absence."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from apps.orchestration.agent import Agent
from tests.fleet.control import Fleet
from tests.gateway.access.certificate import certificate, pem
from tests.instance import ROOT, Instance, free_port

TLS = Path(__file__).parents[1] / "gateway/inference/tls"
HASH = "ce275665"
"""The name under which OpenSSL looks for the tests' authority in a folder (`openssl x509 -hash`)."""


@contextmanager
def agent(folder: Path, url: str, key: str | None, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """Runs where nothing is known of a Citadel: neither home nor database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CITADEL_", "DJANGO_"))}
    environment |= {"CITADEL_HOME": str(folder / "nothing"), **({"CITADEL_API_KEY": key} if key else {})}
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "agent", "--server", url, *words],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def until(true: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def row(server_id: str) -> object:
    from apps.orchestration.models import Server

    return Server.objects.filter(server_id=server_id).first()


def test_it_registers_a_machine_sends_its_load_and_takes_it_out(citadel: Instance, model: str, tmp_path: Path) -> None:
    from apps.orchestration.models import Event, Server

    name = f"agent-{model}"
    key = citadel.key(role="server")
    with Fleet.start(kind="ollama", models=[model]) as server:
        words = ("--id", name, "--port", str(server.port), "--role", "GPU box", "--capability", "business_models")
        with agent(tmp_path, citadel.url, key, *words, "--interval", "0.2", "--deregister") as process:
            until(lambda: (found := row(name)) and found.kind == "ollama")  # type: ignore[attr-defined]
            found = Server.objects.get(server_id=name)
            assert (found.hostname, found.role, found.capabilities) == ("127.0.0.1", "GPU box", ["business_models"])
            assert found.registered_by == key.split("_")[1]
            until(lambda: heartbeat_of(citadel, name))
            first = heartbeat_of(citadel, name)
            assert 0 <= first["cpu"] <= 1 and 0 < first["memory"] <= 1
            until(lambda: heartbeat_of(citadel, name)["at"] > first["at"])
            Server.objects.filter(server_id=name).delete()
            until(lambda: row(name))  # it notices, and registers again
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert row(name) is None
        assert said(tmp_path).count(f"registered {name}: active\n") == 2
        assert f"deregistered {name}" in said(tmp_path)
        assert "Nothing answers" not in said(tmp_path)
        assert key not in said(tmp_path)
        events = Event.objects.filter(server_id=name).exclude(type="load_threshold_exceeded")  # of this very machine
        told = list(events.order_by("id").values_list("type", flat=True))
        assert told == ["server_registered", "server_registered", "server_departed"]
        assert heartbeat_of(citadel, name) == {}


def test_a_machine_that_gets_another_address_registers_with_that(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with another lease, or in another network: Citadel would go on calling where nobody is."""
    address, name = "127.0.0.1", "moving"
    monkeypatch.setattr("apps.orchestration.agent._own_address", lambda _url: address)
    with client_of(citadel) as client:
        mover = Agent(client, {"id": name, "port": free_port()}, interval=0.1, deregister=True)
        thread = threading.Thread(target=mover.run)
        thread.start()
        try:
            until(lambda: heartbeat_of(citadel, name))
            assert row(name).hostname == "127.0.0.1"  # type: ignore[attr-defined]
            address = "127.0.0.2"
            until(lambda: row(name).hostname == "127.0.0.2")  # type: ignore[attr-defined]
            registered = len(events_of(name))
            beat = heartbeat_of(citadel, name).get("at", 0)  # there is none just after a move
            until(lambda: heartbeat_of(citadel, name).get("at", 0) > beat + 500)
            assert len(events_of(name)) == registered == 2
        finally:
            mover.stop()
            thread.join(15)
    assert row(name) is None


def test_a_machine_with_a_given_hostname_keeps_it(citadel: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.orchestration.agent._own_address", lambda _url: pytest.fail("it was not asked for"))
    with client_of(citadel) as client:
        fixed = {"id": "fixed", "port": free_port(), "hostname": "localhost"}
        stays = Agent(client, fixed, interval=0.1, deregister=True)
        thread = threading.Thread(target=stays.run)
        thread.start()
        try:
            until(lambda: heartbeat_of(citadel, "fixed"))
            beat = heartbeat_of(citadel, "fixed")["at"]
            until(lambda: heartbeat_of(citadel, "fixed")["at"] > beat)
            assert row("fixed").hostname == "localhost"  # type: ignore[attr-defined]
        finally:
            stays.stop()
            thread.join(15)


def test_whose_id_another_takes_says_so_and_ends(citadel: Instance, model: str, tmp_path: Path) -> None:
    """As two servers of one machine, or copies of one: its heartbeats would say that the other's entry is well."""
    key, ports = citadel.key(role="server"), (free_port(), free_port())
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    words = ("--id", f"twin-{model}", "--interval", "0.2", "--deregister", "--port")
    with agent(folders[0], citadel.url, key, *words, str(ports[0])) as first:
        until(lambda: heartbeat_of(citadel, f"twin-{model}"))
        with agent(folders[1], citadel.url, key, *words, str(ports[1])) as second:
            assert first.wait(20) == 1
            told = f"agent: The server 'twin-{model}' is at http://127.0.0.1:{ports[1]}: another one has registered"
            assert told in said(folders[0])
            assert row(f"twin-{model}").port == ports[1]  # type: ignore[attr-defined]
            until(lambda: heartbeat_of(citadel, f"twin-{model}"))
            assert second.poll() is None
            second.send_signal(signal.SIGTERM)
            assert second.wait(15) == 0
    assert row(f"twin-{model}") is None


def test_servers_of_one_machine_have_ids_of_their_own(citadel: Instance, tmp_path: Path) -> None:
    port = free_port()
    with agent(tmp_path, citadel.url, citadel.key(role="server"), "--port", str(port), "--deregister") as process:
        until(lambda: f"registered {socket.gethostname()[:58]}-{port}: active" in said(tmp_path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def client_of(citadel: Instance) -> httpx.Client:
    headers = {"authorization": f"Bearer {citadel.key(role='operator')}"}
    return httpx.Client(base_url=citadel.url, headers=headers, timeout=10)


def events_of(name: str) -> list[str]:
    """The kinds of what is told of its registrations."""
    from apps.orchestration.models import Event

    return list(Event.objects.filter(server_id=name, type="server_registered").values_list("type", flat=True))


def test_where_nothing_listens_it_says_so_and_goes_on(citadel: Instance, tmp_path: Path) -> None:
    port = free_port()
    words = ("--id", "unheard", "--port", str(port), "--deregister")
    with agent(tmp_path, citadel.url, citadel.key(role="operator"), *words) as process:
        until(lambda: heartbeat_of(citadel, "unheard"))
        assert f"Nothing answers on 127.0.0.1 port {port} (Connection refused)" in said(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def test_an_interval_by_which_it_would_depart_is_cut(citadel: Instance, tmp_path: Path) -> None:
    words = ("--id", "seldom", "--port", str(free_port()), "--interval", "3600", "--deregister")
    with agent(tmp_path, citadel.url, citadel.key(role="operator"), *words) as process:
        until(lambda: "a heartbeat every" in said(tmp_path))
        assert "as Citadel expects them, not every 3600 s" in said(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def heartbeat_of(citadel: Instance, name: str) -> dict[str, float]:
    import json

    import redis

    with redis.Redis.from_url(citadel.redis_url) as state:
        found = state.hget("fleet:heartbeats", name)
        return json.loads(found) if found else {}  # type: ignore[arg-type]


def test_it_waits_for_citadel(citadel: Instance, tmp_path: Path) -> None:
    with agent(tmp_path, f"http://127.0.0.1:{free_port()}", "any", "--id", "x", "--port", "1") as process:
        until(lambda: said(tmp_path).count("Citadel is away") >= 2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_it_waits_for_a_name_that_leads_nowhere_yet(tmp_path: Path) -> None:
    """As at a machine's start, before its network is there."""
    with agent(tmp_path, "http://citadel.invalid:8002", "any", "--id", "x", "--port", "1") as process:
        until(lambda: said(tmp_path).count("Citadel is away") >= 2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_citadel_that_an_authority_of_ones_own_has_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one in the folder of authorities, where a file of others is named too."""
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / f"{HASH}.0").symlink_to(TLS / "certificate.pem")
    others = tmp_path / "others.pem"
    others.write_text(pem(certificate()))
    monkeypatch.setenv("SSL_CERT_FILE", str(others))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        with agent(tmp_path, url, "any", "--id", "x", "--port", "1") as process:
            connection, _ = listener.accept()
            with tls.wrap_socket(connection, server_side=True) as channel:
                assert channel.recv(100_000).startswith(b"POST /orchestration/servers/register ")
                channel.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}")
                assert process.wait(10) == 1
    assert said(tmp_path) == "agent: status 400\n"


def test_a_server_with_a_wrong_path_is_told_and_not_asked_for_ever_so_often(citadel: Instance, tmp_path: Path) -> None:
    key = citadel.key(role="operator")
    with agent(tmp_path, f"{citadel.url}/v1", key, "--id", "x", "--port", "1") as process:
        until(lambda: said(tmp_path).count("is --server") >= 2)
        assert "status 404" in said(tmp_path) and "next attempt in 2 s" in said(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("role", "words", "reason"),
    [
        ("developer", ("--port", "1"), "fleet.register"),
        (None, ("--port", "1"), "no key"),
        ("operator", ("--port", "99999"), "'port'"),
        ("operator", ("--port", "1", "--hostname", "169.254.169.254"), "may not be called"),
        ("operator", (), "--port"),
        ("operator", ("--port", "1", "--interval", "-1"), "0.1 s or more"),
        ("operator", ("--port", "1", "--interval", "nan"), "0.1 s or more"),
    ],
)
def test_what_is_wrong_is_told_and_ends_it(
    citadel: Instance, tmp_path: Path, role: str | None, words: tuple[str, ...], reason: str
) -> None:
    key = citadel.key(role=role) if role else None
    with agent(tmp_path, citadel.url, key, "--id", "never", *words) as process:
        assert process.wait(20) > 0
    assert reason in said(tmp_path)
    assert row("never") is None


@pytest.mark.parametrize("url", ["h:1", "http://h:x", "http://h:99999", "http://h:0"])
def test_what_is_no_address_is_told_and_ends_it(tmp_path: Path, url: str) -> None:
    with agent(tmp_path, url, "any", "--id", "never", "--port", "1") as process:
        assert process.wait(20) == 1
    assert said(tmp_path).startswith("agent: ") and said(tmp_path).count("\n") == 1


def test_a_key_that_others_can_read_is_refused(citadel: Instance, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(citadel.key(role="operator") + "\n")
    file.chmod(0o644)
    words = ("--id", "by-file", "--port", "9", "--key-file", str(file), "--deregister")
    with agent(tmp_path, citadel.url, None, *words) as process:
        assert process.wait(20) == 1
    assert "chmod 600" in said(tmp_path)
    file.chmod(0o600)
    with agent(tmp_path, citadel.url, None, *words) as process:
        until(lambda: "registered by-file" in said(tmp_path))
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
