"""Nobody listens, nobody accepts, nobody reads."""

import socket
import time

import pytest

from tests.fleet.control import Fleet, FleetError

from .client import CHAT, ask, chat, connect, read, request_bytes, stream


def test_refusing_closes_what_is_open_and_can_be_undone(server: Fleet) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes("/health", close=False))
        assert connection.recv(1000)
        server.behave("refuse")
        assert connection.recv(1000) == b""
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect(server)
    assert server.state().listener == "refuse"
    server.behave()
    assert ask(server, body=chat()).status == 200


def test_refusing_may_keep_open_connections(server: Fleet) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes("/health", close=False))
        assert connection.recv(1000)
        server.behave("refuse existing=keep")
        connection.sendall(request_bytes("/health"))
        assert read(connection).status == 200
        with pytest.raises(ConnectionRefusedError):
            connect(server)


def test_a_silent_host_never_answers_syn_and_freezes_what_is_open(server: Fleet) -> None:
    server.behave("slow_chunks 30")
    with connect(server) as running, connect(server) as idle:
        running.sendall(request_bytes(CHAT, chat(stream=True)))
        assert running.recv(100)
        server.wait_for(lambda log: len(log) == 1)
        server.behave("silent_host")
        read(running, 0.1)
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(TimeoutError):
                socket.create_connection((server.host, server.port), timeout=0.3)
            assert time.monotonic() - begun >= 0.3
        idle.sendall(request_bytes("/health"))
        assert (read(running, 0.2).raw, read(idle, 0.1).raw) == (b"", b"")
        running.close()
        assert server.wait_for(lambda log: [entry for entry in log if entry.ended == "client_closed"])
        server.behave()
        assert read(idle).status == 200
    assert stream(server).end == "fin"


def test_a_deaf_server_accepts_and_never_reads(server: Fleet) -> None:
    server.behave("deaf", next=2)
    for _ in range(2):
        with connect(server) as connection:
            connection.sendall(request_bytes("/health"))
            assert read(connection, 0.1).raw == b""
            left_at = time.monotonic()
        server.wait_for(lambda _: not server.state().open_connections)
        ended_at = server.connections()[-1].ended_at
        assert ended_at is not None
        assert ended_at - left_at < 0.05
    assert server.log() == []
    assert ask(server, "/health").status == 200


def test_what_comes_before_a_request_can_not_depend_on_it(server: Fleet) -> None:
    for do, conditions in (("refuse", {"next": 1}), ("deaf", {"body": "x"}), ("deaf; hang", {"next": 1})):
        with pytest.raises(FleetError):
            server.behave(do, **conditions)
    assert ask(server, body=chat("[[behave:refuse]]")).status == 400
