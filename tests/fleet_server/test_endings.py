"""Where an answer ends, how, and what the client has by then."""

import socket
import struct
import time

import pytest

from tests.fleet.control import Fleet
from tests.held_up import HELD_UP

from .client import CHAT, ask, chat, connect, read, request_bytes, stream


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("chunks", [0, 1, 3, 8])
def test_exactly_k_chunks_arrive_before_the_end(server: Fleet, how: str, chunks: int) -> None:
    whole = stream(server).content()
    server.behave(f"die chunk:{chunks} {how}")
    seen = stream(server)
    assert seen.content() == whole[:chunks]
    assert seen.end == how
    assert b"[DONE]" not in seen.body
    assert b'"role"' in seen.body
    last = server.log()[-1]
    assert (last.ended, last.chunks_sent, last.bytes_sent) == ("killed", chunks, len(seen.raw))


def test_a_chunk_is_cut_in_the_middle(server: Fleet) -> None:
    server.behave("die chunk:2.5")
    seen = stream(server)
    assert seen.body.count(b"data: ") == 4  # the role, two chunks, and the beginning of the third
    assert not seen.body.endswith(b"\n\n")


@pytest.mark.parametrize("kept", [0, 1, 17, 100])
def test_the_answer_ends_at_a_byte(server: Fleet, kept: int) -> None:
    whole = ask(server, body=chat())
    server.behave(f"die byte:{kept} rst")
    seen = ask(server, body=chat())
    assert seen.framed == whole.framed[:kept]
    assert seen.end == "rst"
    server.behave(f"die head:{kept // 2}")
    assert ask(server, body=chat()).raw == whole.raw[: kept // 2]


def test_the_answer_ends_before_and_after_the_head_and_before_the_last_frame(server: Fleet) -> None:
    server.behave("die request rst")
    assert (stream(server).raw, stream(server).end) == (b"", "rst")
    server.behave("die headers")
    assert (stream(server).framed, stream(server).status) == (b"", 200)
    server.behave("die end")
    seen = stream(server)
    assert seen.body.endswith(b"data: [DONE]\n\n")
    assert not seen.framed.endswith(b"0\r\n\r\n")


def test_the_process_dies_in_a_stream_and_comes_back_on_its_port() -> None:
    with Fleet.start(tokens=8, behave=["die chunk:3 exit"]) as server:
        url, pid = server.url, server.pid
        seen = stream(server, model="test-model")
        assert len(seen.content()) == 3
        assert server.wait_dead() == -9
        assert not server.alive
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        server.restart()
        assert (server.url, server.pid != pid) == (url, True)
        server.behave()
        assert ask(server, "/v1/models").status == 200


def test_the_process_stops_in_a_stream_and_goes_on() -> None:
    with Fleet.start(tokens=4, models=["tiny"], behave=["die chunk:2 stop"]) as server:
        with connect(server) as connection:
            connection.sendall(request_bytes(CHAT, chat(stream=True)))
            assert len(read(connection, 0.5).content()) == 2
            with connect(server) as other:  # the kernel still accepts
                other.sendall(request_bytes("/health"))
                assert read(other, 0.2).end == "timeout"
                server.cont()
                assert read(other).status == 200
            assert b"[DONE]" in read(connection).raw
        server.stop()
        assert server.alive
        server.kill()
        assert not server.alive


@pytest.mark.parametrize(
    ("behaviour", "status", "bodies"),
    [("hang", None, 0), ("hang headers", 200, 0), ("hang chunk:0", 200, 1), ("hang chunk:2", 200, 3)],
)
def test_hanging_and_the_client_that_leaves(server: Fleet, behaviour: str, status: int | None, bodies: int) -> None:
    server.behave(behaviour)
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, chat(stream=True)))
        seen = read(connection, 0.15)
        assert seen.end == "timeout"
        assert (seen.status if seen.raw else None) == status
        assert seen.framed.count(b"data: ") == bodies
        assert server.state().in_flight == 1
        assert ask(server, "/health").status == 200
        left_at = time.monotonic()
    [entry] = server.wait_for(lambda log: [entry for entry in log if entry.ended == "client_closed"])
    assert entry.ended_at is not None
    assert entry.ended_at - left_at < 0.05
    state = server.state()
    assert (state.cancelled, state.in_flight, state.open_connections) == (1, 0, 0)


def test_leaving_a_running_stream_and_a_slow_plain_answer_is_noticed(server: Fleet) -> None:
    for behaviour, asked in (("slow_chunks 20", chat(stream=True)), ("slow_start 5000", chat())):
        server.clear()
        server.behave(behaviour)
        with connect(server) as connection:
            connection.sendall(request_bytes(CHAT, asked))
            time.sleep(0.1)
            left_at = time.monotonic()
        entry = server.wait_for(lambda log: [entry for entry in log if entry.ended == "client_closed"])[0]
        assert entry.ended_at is not None
        assert entry.ended_at - left_at < 0.05
        assert entry.chunks_sent < 8


def test_a_client_that_resets_is_noticed_like_one_that_closes(server: Fleet) -> None:
    server.behave("hang chunk:1")
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, chat(stream=True)))
        assert len(read(connection, 0.1).content()) == 1
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.wait_for(lambda log: [entry for entry in log if entry.ended == "client_closed"])


def test_a_client_that_does_not_read_slows_the_stream_and_can_leave(server: Fleet) -> None:
    server.behave("huge_line 20000000")
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, chat(stream=True)))
        time.sleep(0.2)
        assert server.state().in_flight == 1
    [entry] = server.wait_for(lambda log: [entry for entry in log if entry.ended])
    assert (entry.ended, entry.chunks_sent) == ("client_closed", 0)


def test_leaving_before_the_body_was_sent_is_noticed(server: Fleet) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, chat())[:-5])
        assert server.wait_for(lambda log: len(log) == 1)
    [entry] = server.wait_for(lambda log: [entry for entry in log if entry.ended])
    assert (entry.ended, entry.read_at) == ("client_closed", None)


def test_slow_start_slow_chunks_and_stall_take_their_time(server: Fleet) -> None:
    server.behave({"slow_start": {"ms": 150}, "slow_chunks": {"ms": 30}, "stall": {"at": "chunk:4", "seconds": 0.2}})
    begun = time.monotonic()
    seen = stream(server)
    entry = server.log()[-1]
    assert seen.end == "fin"
    assert len(seen.content()) == 8
    assert entry.first_byte_at is not None
    assert entry.first_byte_at - entry.begun_at >= 0.15
    gaps = sorted(later - earlier for earlier, later in zip(seen.times, seen.times[1:], strict=False))
    assert gaps[-1] >= 0.2
    assert 0.15 + 10 * 0.03 + 0.2 <= time.monotonic() - begun < 2 + HELD_UP
