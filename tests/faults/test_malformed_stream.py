"""Row 13: streams that are none: before the first content another server answers, after it the stream is cut short."""

import asyncio
import json
from typing import Any

import pytest

from tests.faults.client import CHAT, COMPLETIONS, Client, Reply, body_of
from tests.faults.conftest import Pair, Servers
from tests.faults.invariants import Case

STREAMS = [CHAT, COMPLETIONS]

# What spoils a stream at any place; `K` is the number of chunks before it.
ANYWHERE = [
    "half_json after=K",
    'event_is data="no JSON" after=K',
    "event_is data=null after=K",
    "event_is data=[] after=K",
    "event_is data=17 after=K",
    'event_is data="{\\"choices\\":7}" after=K',
    'event_is data="{\\"choices\\":[null]}" after=K',
    *(
        f"event_is data='{data}' after=K"
        for data in (
            '{"error":{}}',
            '{"detail":"Internal error"}',
            '{"choices":[{"delta":{"content":5},"text":5}]}',
            '{"choices":[{"delta":{},"text":"","finish_reason":"abort"}]}',
            '{"choices":[{"delta":{},"text":"","error":{"code":502}}]}',
        )
    ),
    """event_is data='{"message":"CUDA out of memory","code":500}' event=error after=K""",
    "bad_utf8 after=K",
    "huge_line after=K",
    "huge_line after=K valid=false",
    "huge_line size=20000000 after=K",
    "error_event after=K",
    "error_event after=K shape=vllm_old",
    "error_event after=K named=true",
    "error_event after=K then=go_on",
]
# What spoils a whole stream, so that nothing of it is content.
FROM_THE_START = [
    "comments_only",
    "only_done",
    "empty",
    "html",
    "content_type text/html",
    "content_type application/json",
    "content_type text/plain",
    'content_type value=""',
    "gzip",
    "gzip header=false",
    "gzip body=false",
    "bad_frame at_event=0",
    "lines cr; half_json",
    "split 7; half_json",
    "together 4; half_json",
    "ok_error",
]
LEGAL = [
    "split 1",
    "split 7; together 4",
    "split_characters",
    "frames 1",
    "frames 3; split 2",
    "lines cr",
    "lines crlf",
    "lines crlf; split 1",
    "lines cr; split 1",
    "no_space",
    "multi_line",
    "comments",
    "fields",
    "bom",
    "bom; split 1",
    "together 100",
    "framing close",
    "framing length",
    "no_done",
    "unknown_fields",
    "huge_line size=200000 after=2",
    {"content_type": {"value": "text/event-stream; charset=utf-8"}},
    "content_type Text/Event-Stream",
    "comments; multi_line; lines crlf; split 5",
]


def spoiled(behaviour: str, after: int) -> str:
    return behaviour.replace("=K", f"={after}")


def check_passed_whole(reply: Reply) -> None:
    """A good stream in every respect."""
    assert reply.status == 200, reply.body
    assert reply.stream_error is None
    assert reply.finish_reasons == ["stop"]
    assert reply.events.count("[DONE]") == 1
    assert reply.events[-1] == "[DONE]"
    assert not reply.broken


def check_cut_short(reply: Reply, chunks: int) -> None:
    """The chunks that came, then one error, and nothing that looks like an end."""
    assert reply.status == 200
    assert reply.stream_error is not None
    assert reply.stream_error["code"] == "stream_interrupted"
    assert reply.events[-1].startswith('{"error"')
    assert "[DONE]" not in reply.events
    assert reply.finish_reasons == []
    assert len([chunk for chunk in reply.chunks if _says_something(chunk)]) == chunks


def _says_something(chunk: dict[str, list[dict[str, dict[str, str] | str]]]) -> bool:
    [choice] = chunk["choices"]
    delta = choice.get("delta")
    return bool(choice.get("text") or (isinstance(delta, dict) and delta.get("content")))


@pytest.mark.parametrize("path", [CHAT, pytest.param(COMPLETIONS, marks=pytest.mark.faults)])
@pytest.mark.parametrize("behaviour", [*(spoiled(text, 0) for text in ANYWHERE), *FROM_THE_START])
async def test_before_the_first_content_another_server_answers(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str
) -> None:
    pair.first.behave(behaviour)
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    check_passed_whole(reply)
    assert reply.headers["x-citadel-server"] == pair.second.server_id
    assert reply.headers["x-citadel-attempts"] == "2"
    assert len(pair.first.calls()) == 1
    [record] = case.citadel.records(reply.identity)
    attempts = record["attempts"]
    assert isinstance(attempts, list)
    assert attempts[0]["outcome"] not in ("ok", "cancelled", "timeout")


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("behaviour", [spoiled(text, 3) for text in ANYWHERE])
@pytest.mark.parametrize(
    "packets", ["", *(pytest.param(text, marks=pytest.mark.faults) for text in ("lines crlf; ", "split 50; "))]
)
async def test_after_it_the_stream_is_cut_short(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str, packets: str
) -> None:
    pair.first.behave(f"slow_chunks 30; {packets}{behaviour}")  # one by one: nothing is known of the third at the first
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    check_cut_short(reply, 3)
    assert not pair.second.calls()
    [record] = case.citadel.records(reply.identity)
    assert record["outcome"] == "stream_interrupted"
    assert record["completion_tokens"] == 3


@pytest.mark.parametrize("path", [CHAT, pytest.param(COMPLETIONS, marks=pytest.mark.faults)])
@pytest.mark.parametrize("behaviour", [spoiled(text, 3) for text in ANYWHERE])
async def test_what_came_together_with_what_spoils_the_stream_is_not_lost(
    case: Case, pair: Pair, client: Client, path: str, behaviour: str
) -> None:
    pair.first.behave(f"together 8; {behaviour}")
    reply = await client.ask(path, body_of(path, pair.model, stream=True))
    check_cut_short(reply, 3)
    assert not pair.second.calls()
    [record] = case.citadel.records(reply.identity)
    assert (record["outcome"], record["completion_tokens"]) == ("stream_interrupted", 3)


@pytest.mark.parametrize("packets", [1, 2])
async def test_an_error_after_the_last_chunk_is_told_after_it(case: Case, client: Client, packets: int) -> None:
    answer = framed(chunk("x"), chunk(finish="stop"))
    error = framed({"error": {"message": "out of memory", "code": 500}})
    async with RawServer(*([answer + error] if packets == 1 else [answer, error])) as port:
        model = f"model-{case.prefix}"
        with case.citadel.registered(f"http://127.0.0.1:{port}", [model]):
            reply = await client.ask(CHAT, body_of(CHAT, model, stream=True))
    assert reply.text == "x"
    assert reply.finish_reasons == ["stop"]
    assert reply.stream_error is not None
    assert "[DONE]" not in reply.events


@pytest.mark.parametrize("path", [CHAT, pytest.param(COMPLETIONS, marks=pytest.mark.faults)])
@pytest.mark.parametrize("behaviour", LEGAL)
async def test_what_is_legal_passes(pair: Pair, client: Client, path: str, behaviour: str | dict[str, Any]) -> None:
    """Equal requests get equal answers of the test server, so the odd stream must say what the plain one says."""
    body = body_of(path, pair.model, text="naïve 字 😀", stream=True)
    plain = await client.ask(path, body)
    pair.first.behave(behaviour)
    odd = await client.ask(path, body)
    check_passed_whole(odd)
    assert odd.headers["x-citadel-server"] == pair.first.server_id
    if "huge_line" in behaviour:
        assert len(odd.text) > 200_000
    else:
        assert odd.text == plain.text


@pytest.mark.parametrize("behaviour", [spoiled(text, 0) for text in ANYWHERE[:4]])
async def test_when_every_server_does_it_the_error_has_its_status(
    servers: Servers, client: Client, model: str, behaviour: str
) -> None:
    for server in (servers(model), servers(model)):
        server.behave(behaviour)
    reply = await client.ask(CHAT, body_of(CHAT, model, stream=True))
    assert (reply.status, reply.json()["error"]["type"]) == (502, "upstream_error")


async def test_comments_for_ever_after_content_are_no_progress(case: Case, pair: Pair, client: Client) -> None:
    pair.first.behave("stall chunk:3 60; comments")
    reply = await client.ask(CHAT, body_of(CHAT, pair.model, stream=True))
    check_cut_short(reply, 3)


@pytest.mark.parametrize(
    "behaviour", ["gzip", "not_json", "html", "empty", "json_is null", "json_is []", "bad_frame at_event=0"]
)
@pytest.mark.parametrize("path", STREAMS)
async def test_a_plain_answer_that_is_none_comes_from_another_server(
    pair: Pair, client: Client, path: str, behaviour: str
) -> None:
    pair.first.behave(behaviour)
    reply = await client.ask(path, body_of(path, pair.model))
    assert reply.status == 200, reply.body
    assert reply.headers["x-citadel-server"] == pair.second.server_id
    assert reply.text


async def test_a_server_that_hides_json_from_the_framing_is_found_out(client: Client, case: Case) -> None:
    """JSON over several lines of which only the first is data: valid to a lenient eye, half of it to every client."""
    bad = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(chunk("x"), indent=1).encode()
    async with RawServer(framed(chunk("x")), bad) as port:
        model = f"model-{case.prefix}"
        with case.citadel.registered(f"http://127.0.0.1:{port}", [model]):
            reply = await client.ask(CHAT, body_of(CHAT, model, stream=True))
    check_cut_short(reply, 1)
    assert all(json.loads(event) for event in reply.events)


def chunk(text: str = "", finish: str | None = None) -> dict[str, Any]:
    """A chunk of a chat."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def framed(*events: dict[str, Any]) -> bytes:
    """The events of a stream."""
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


class RawServer:
    """Answers whatever comes with these packets as a stream, and closes."""

    def __init__(self, *packets: bytes) -> None:
        self._packets = packets
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_error: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for packet in self._packets:
            writer.write(packet)
            await asyncio.sleep(0.05)  # so that they arrive one by one
        writer.close()
