"""Streams that say nothing for long, and answers that take too long; with short limits, on the second Citadel."""

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from apps.gateway.inference.calls.first_byte import IN_TIME
from tests.faults.client import request_head
from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, Client, Reply, chat, streamed
from tests.gateway.elsewhere import Elsewhere
from tests.held_up import HELD_UP

COMMENT = b": keep-alive\n\n"
SILENCE = 0.3
IDLE = 1.0
PLAIN = 1.0
STREAM = 5.0
"""In which a busy machine, too, has passed on all that `talkative` says."""
FIRST = 2.0
TOKENS = 60_000


@pytest.fixture
async def client(elsewhere: Elsewhere) -> AsyncIterator[Client]:
    async with elsewhere.asking() as client:
        yield client


@pytest.fixture
def server(elsewhere: Elsewhere) -> Iterator[Fleet]:
    elsewhere.server.clear()
    yield elsewhere.server
    elsewhere.server.behave()


async def test_headers_come_with_the_first_content_or_after_the_silence(
    elsewhere: Elsewhere, server: Fleet, client: Client
) -> None:
    server.behave("slow_start 1000", body="slow")
    for text, soon in (("quick", True), ("slow", False)):
        begun = time.monotonic()
        async with client.session.post(CHAT, json=streamed(elsewhere.model, text)) as answer:
            headers_after = time.monotonic() - begun
            assert answer.status == 200
            body = await answer.read()
        assert body.endswith(b"data: [DONE]\n\n")
        assert (COMMENT in body) is not soon
        if not soon:
            assert SILENCE <= headers_after < 1.0, "the headers waited for the content"
            assert body.startswith(COMMENT)


async def test_comments_fill_each_silence_and_change_nothing(
    elsewhere: Elsewhere, server: Fleet, client: Client
) -> None:
    server.behave("stall chunk:2 0.8")
    answer = await client.post(streamed(elsewhere.model))
    parts = answer.body.split(COMMENT)
    assert len(parts) == 3, "a comment each 0.3 s"
    assert all(part.endswith(b"\n\n") for part in parts[:1])
    server.behave()
    assert (await client.post(streamed(elsewhere.model))).body == b"".join(parts)


async def test_no_progress_for_too_long_interrupts_and_lets_the_server_go(
    elsewhere: Elsewhere, server: Fleet, client: Client
) -> None:
    server.behave("hang chunk:3")
    begun = time.monotonic()
    answer = await client.post(streamed(elsewhere.model), connection="close")
    assert IDLE <= time.monotonic() - begun < 2 * IDLE + HELD_UP
    assert [chunk["choices"][0]["delta"].get("content") is not None for chunk in answer.chunks[1:-1]] == [True] * 3
    assert answer.chunks[-1]["error"]["code"] == "stream_interrupted"
    assert "[DONE]" not in answer.events
    [seen] = await server.until(lambda log: [entry for entry in log if entry.ended and entry.method == "POST"])
    assert seen.ended == "client_closed"


async def test_comments_of_the_server_are_no_content(elsewhere: Elsewhere, server: Fleet, client: Client) -> None:
    """It lives and says nothing: the limit on the first byte is one on the first content."""
    server.behave("comments_only 0")
    begun = time.monotonic()
    answer = await client.post(streamed(elsewhere.model), connection="close")
    assert FIRST <= time.monotonic() - begun < FIRST + HELD_UP
    assert [chunk["error"]["code"] for chunk in answer.chunks] == ["upstream_timeout"]
    [seen] = await server.until(lambda log: [entry for entry in log if entry.ended and entry.method == "POST"])
    assert seen.ended == "client_closed"


async def test_a_stream_has_an_end_in_time(elsewhere: Elsewhere, server: Fleet, client: Client) -> None:
    server.behave("slow_chunks 600")
    begun = time.monotonic()
    answer = await client.post(streamed(elsewhere.model), connection="close")
    assert STREAM <= time.monotonic() - begun < STREAM + HELD_UP
    assert answer.chunks[-1]["error"]["code"] == "stream_interrupted"


async def test_a_plain_answer_has_an_end_in_time(elsewhere: Elsewhere, server: Fleet, client: Client) -> None:
    server.behave("hang")
    begun = time.monotonic()
    answer = await client.post(chat(elsewhere.model))
    assert IN_TIME * PLAIN <= time.monotonic() - begun < 2 * PLAIN + HELD_UP
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    [seen] = await server.until(lambda log: [entry for entry in log if entry.ended and entry.method == "POST"])
    assert seen.ended == "client_closed"
    assert seen.ended_at is not None
    assert seen.ended_at - begun < PLAIN + 1 + HELD_UP


@pytest.mark.parametrize(
    ("behaviour", "code"), [("error 500", "upstream_failed"), ("error 400", None), ("empty", "upstream_failed")]
)
async def test_a_failure_after_the_headers_is_told_in_the_stream(
    elsewhere: Elsewhere, server: Fleet, client: Client, behaviour: str, code: str | None
) -> None:
    server.behave(f"slow_start 800; {behaviour}")
    answer = await client.post(streamed(elsewhere.model), connection="close")
    assert answer.status == 200
    assert answer.body.startswith(COMMENT)
    [event] = answer.events
    error = json.loads(event)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    server.behave()
    assert (await client.post(chat(elsewhere.model))).status == 200


@pytest.fixture(scope="module")
def talkative(elsewhere: Elsewhere) -> Iterator[str]:
    """The model of a server whose streams fit into no socket's buffers."""
    name = f"talkative-{secrets.token_hex(4)}"
    with Fleet.start(models=[name], tokens=TOKENS, behave=["together 100"]) as server:
        elsewhere.command("server", "add", name, server.url)
        elsewhere.citadel.settle()
        yield name
        elsewhere.command("server", "remove", name)


async def test_who_waits_for_an_equal_stream_hears_comments(
    elsewhere: Elsewhere, server: Fleet, client: Client
) -> None:
    """Its headers may come before the answer that it shares, as if it had a server of its own."""
    server.behave("slow_start 900")
    body = streamed(elsewhere.model, "the same", seed=7)
    leader, follower = await asyncio.gather(client.post(body), client.post(body))
    assert len(server.calls()) == 1
    for answer in (leader, follower):
        assert answer.body.startswith(COMMENT)
    assert follower.body.replace(COMMENT, b"") == leader.body.replace(COMMENT, b"")
    assert {record_of(elsewhere, answer)["cache"] for answer in (leader, follower)} == {"miss", "coalesced"}
    assert {record_of(elsewhere, answer)["outcome"] for answer in (leader, follower)} == {"ok"}


@pytest.mark.parametrize(("pause", "outcome"), [(0.6 * IDLE, "ok"), (1.5 * IDLE + HELD_UP, "client_disconnected")])
async def test_a_client_that_stops_reading_is_not_its_servers_fault(
    elsewhere: Elsewhere, talkative: str, pause: float, outcome: str
) -> None:
    """It gets its answer when it reads on in time, and has left when it doesn't."""
    body = json.dumps(streamed(talkative)).encode()
    identity = f"slow-reader-{outcome}-{secrets.token_hex(4)}"
    head = request_head(CHAT, {"authorization": f"Bearer {elsewhere.unlimited}", "x-request-id": identity})

    def read_late() -> bytes:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.connect(("127.0.0.1", urlsplit(elsewhere.citadel.url).port))
            connection.sendall(head[:-2] + b"content-length: %d\r\n\r\n" % len(body) + body)
            time.sleep(pause)
            pieces = []
            with contextlib.suppress(ConnectionError):
                while (piece := connection.recv(1 << 20)) and not piece.endswith(b"0\r\n\r\n"):
                    pieces.append(piece)
            return b"".join([*pieces, piece])

    answer = await asyncio.to_thread(read_late)
    assert (b"data: [DONE]" in answer) is (outcome == "ok")
    assert b"stream_interrupted" not in answer
    [record] = elsewhere.citadel.records(identity)
    assert record["outcome"] == outcome
    log = (elsewhere.citadel.home / "logs" / "web-1.log").read_bytes()
    assert b"server_ejected" not in log[log.rfind(identity.encode()) :]


def record_of(elsewhere: Elsewhere, answer: Reply) -> dict[str, object]:
    """What was recorded of a request."""
    [record] = elsewhere.citadel.records(answer.identity)
    return record
