"""Malformed and odd: streams, bodies, headers, byte for byte."""

import gzip
import json
from statistics import median

import pytest

from tests.fleet.control import Fleet

from .client import Seen, ask, chat, stream


def events_by_the_standard(body: bytes) -> list[str]:
    """The data of all events, as WHATWG HTML 9.2.6 says to read them."""
    text = body.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    blocks = [[line for line in block.split("\n") if line.startswith("data:")] for block in text.split("\n\n")]
    data = [[line.removeprefix("data:").removeprefix(" ") for line in block] for block in blocks]
    return ["\n".join(lines) for lines in data if lines]


def decoded(seen: Seen) -> list[object]:
    return [json.loads(data) if data != "[DONE]" else data for data in events_by_the_standard(seen.body)]


LEGAL = [
    "lines crlf",
    "lines cr",
    "no_space",
    "multi_line",
    "comments",
    "fields",
    "bom",
    "together 4",
    "together 100",
    "split",
    "split 7",
    "split_characters 1",
    "frames 1",
    "framing close",
    "framing length",
    "huge_headers 20000",
    "lines crlf; multi_line; comments; split 3; together 2",
]


@pytest.mark.parametrize("behaviour", LEGAL)
def test_a_legal_oddity_says_the_same(server: Fleet, behaviour: str) -> None:
    plain, usual = stream(server), ask(server, body=chat())
    server.behave(behaviour)
    assert decoded(stream(server)) == decoded(plain)
    assert ask(server, body=chat()).json() == usual.json()
    assert server.log()[-1].ended == "completed"


def test_packets_are_what_was_asked_for(server: Fleet) -> None:
    server.behave("split 50 gap_ms=5")
    sizes = [len(packet) for packet in stream(server).packets[1:-1]]
    assert len(sizes) > 30
    assert median(sizes) == 50
    server.behave("split_characters 10")
    broken = 0
    for packet in stream(server).packets:
        try:
            packet.decode()
        except UnicodeDecodeError:
            broken += 1
    assert broken >= 4
    server.behave("together 100")
    assert len(stream(server).packets) <= 3


@pytest.mark.parametrize("style", ["last", "null_each", "in_finish", "running", "missing"])
def test_usage_styles(server: Fleet, style: str) -> None:
    server.behave(f"usage {style}")
    events = stream(server, stream_options={"include_usage": True}).events()[:-1]
    told = [event.get("usage", "absent") for event in events]
    full = {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert (
        told
        == {
            "last": ["absent"] * 10 + [full],
            "null_each": [None] * 10 + [full],
            "in_finish": ["absent"] * 9 + [full],
            "running": [{**full, "completion_tokens": n, "total_tokens": n + 2} for n in (*range(9), 8)],
            "missing": ["absent"] * 10,
        }[style]
    )
    if style in ("last", "null_each"):
        assert events[-1]["choices"] == []
    assert ("usage" in ask(server, body=chat()).json()) == (style != "missing")


def test_what_is_left_out_of_a_stream(server: Fleet) -> None:
    server.behave("no_finish")
    events = stream(server).events()
    assert events[-1] == "[DONE]"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    server.behave("no_finish done=false")
    assert len(stream(server).events()) == 9
    server.behave("no_done")
    assert stream(server).events()[-1]["choices"][0]["finish_reason"] == "stop"
    server.behave("only_done")
    assert stream(server).events() == ["[DONE]"]
    server.behave("comments_only 5")
    assert stream(server).body == b": keep-alive\n\n" * 5


def test_errors_in_a_stream(server: Fleet) -> None:
    server.behave("error_event role=false")
    [only] = stream(server).events()
    assert only["error"]["type"] == "server_error"
    server.behave("error_event 3 context shape=vllm_old then=done")
    *before, error, done = stream(server).events()
    assert (len(before), error["object"], done) == (4, "error", "[DONE]")
    server.behave("error_event 2 named=true then=go_on")
    body = stream(server).body
    assert b"event: error\ndata: {" in body
    assert body.endswith(b"data: [DONE]\n\n")


def test_malformed_events(server: Fleet) -> None:
    server.behave("half_json 2")
    data = events_by_the_standard(stream(server).body)
    assert data[3].endswith('"cont')
    assert len(data) == 12
    server.behave("event_is null after=1")
    assert events_by_the_standard(stream(server).body)[2] == "null"
    server.behave("bad_utf8 1")
    with pytest.raises(UnicodeDecodeError):
        stream(server).body.decode()
    server.behave("huge_line")
    assert max(len(line) for line in stream(server).body.split(b"\n")) > 1_048_576
    server.behave("huge_line 100 valid=false")
    assert b"\ndata: " + b"x" * 100 + b"\n" in stream(server).body


def test_content_type_and_gzip(server: Fleet) -> None:
    server.behave("content_type application/json")
    assert b"content-type: application/json" in stream(server).head
    server.behave("content_type ''")
    assert b"content-type" not in stream(server).head
    plain = ask(server, body=chat("[[behave:lines lf]]"))
    server.behave("gzip; slow_chunks 5")
    seen = stream(server)
    assert b"content-encoding: gzip" in seen.head
    assert gzip.decompress(seen.body).endswith(b"data: [DONE]\n\n")
    assert len(seen.packets) >= 2  # compressed, and yet a stream
    assert json.loads(gzip.decompress(ask(server, body=chat()).body))["object"] == plain.json()["object"]
    server.behave("gzip header=false")
    assert b"content-encoding" not in stream(server).head
    server.behave("gzip body=false")
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(stream(server).body)


def test_lies_about_length_and_frames(server: Fleet) -> None:
    usual = ask(server, body=chat())
    server.behave("wrong_length 10")
    seen = ask(server, body=chat())
    assert f"content-length: {len(usual.body) + 10}".encode() in seen.head
    assert (seen.body, seen.end) == (usual.body, "fin")
    server.behave("wrong_length -10")
    assert f"content-length: {len(usual.body) - 10}".encode() in ask(server, body=chat()).head
    server.behave("bad_frame 2")
    assert b"\r\nzz\r\ndata: " in stream(server).framed


def test_sizes(server: Fleet) -> None:
    server.behave("huge_headers 100000")
    assert 99_000 < len(ask(server, body=chat()).head) < 105_000
    server.behave("huge_body 3000000")
    assert len(ask(server, body=chat()).json()["padding"]) == 3_000_000
    assert server.log()[-1].ended == "completed"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_200_that_is_no_answer(server: Fleet, streamed: bool) -> None:
    asked = chat(stream=streamed)
    for behaviour, held in {
        "ok_error": b'{"error":{"message":',
        "ok_error object": b'{"object":"error",',
        "ok_error error context": b'"code":"context_length_exceeded"',
        "html": b"<!doctype html>",
        "empty": b"",
        "json_is []": b"[]",
    }.items():
        server.behave(behaviour)
        seen = ask(server, body=asked)
        assert seen.status == 200
        assert held in seen.body
        assert bool(held) == bool(seen.body)
    server.behave("not_json")
    with pytest.raises(json.JSONDecodeError):
        ask(server, body=chat()).json()


@pytest.mark.parametrize(
    ("behaviour", "status", "body"),
    [
        ("error", 500, "server_error"),
        ("error 400", 400, "invalid_request_error"),
        ("error 0 context", 400, "context_length_exceeded"),
        ("error 401", 401, "invalid_api_key"),
        ("error 404", 404, "model_not_found"),
        ("error 429 quota", 429, "insufficient_quota"),
        ("error 502", 502, "server_error"),
        ("error 0 loading llamacpp", 503, "unavailable_error"),
        ("error 501 shape=llamacpp", 501, "not_supported_error"),
        ("error 404 shape=ollama", 404, "not_found_error"),
        ("error 404 shape=ollama_native", 404, '{"error":"model'),
        ("error 400 shape=vllm", 400, "BadRequestError"),
        ("error 401 shape=vllm", 401, '{"error":"Unauthorized"}'),
        ("error 404 shape=vllm_old", 404, '{"object":"error"'),
        ("error 422 shape=fastapi", 422, '{"detail":['),
        ("error 503 shape=text", 503, "overloaded"),
    ],
)
def test_errors_in_the_shapes_of_the_servers(server: Fleet, behaviour: str, status: int, body: str) -> None:
    server.behave(behaviour)
    seen = stream(server)
    assert seen.status == status
    assert body in seen.body.decode()


def test_unknown_fields(server: Fleet) -> None:
    server.behave("unknown_fields x_new")
    assert ask(server, body=chat()).json()["x_new"] == {"kept": [1, 2.5, None]}
    assert all("x_new" in event for event in stream(server).events()[:-1])
