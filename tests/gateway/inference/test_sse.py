"""The parser of streams: any cuts, any legal framing, nothing malformed ever passed on."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps.gateway.inference.streams.sse import DONE, LARGEST_EVENT, ErrorEvent, Malformed, Parser

Json = dict[str, Any]
TEXT = st.text(max_size=8) | st.sampled_from(["\n\n", "data: [DONE]\n\n", "\r\n", '"', "\u2028", "字", "\ufeff"])
USAGE: Json = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}


def content(text: str, index: int = 0) -> Json:
    return {"id": "c", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]}


def role(index: int = 0) -> Json:
    return {"id": "c", "choices": [{"index": index, "delta": {"role": "assistant"}}], "usage": None}


def end(index: int = 0) -> Json:
    return {"id": "c", "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}


CHUNKS = st.lists(
    st.builds(content, TEXT, st.integers(0, 2)) | st.just(role()) | st.builds(end, st.integers(0, 2)) | st.just(USAGE),
    max_size=10,
)


@st.composite
def framed(draw: st.DrawFn, chunks: Sequence[Json]) -> bytes:
    """The chunks as a stream, in any way that the standard allows."""
    line_end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = draw(st.sampled_from(["", "", "\ufeff"]))
    for chunk in chunks:
        data = json.dumps(chunk, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 1])))
        before = draw(st.sampled_from([[], [], [": ping"], ["event: message", "id: 7"], [": ping", ""], ["other"]]))
        space = draw(st.sampled_from([" ", " ", ""]))
        lines = [*before, *(f"data:{space}{line}" for line in data.split("\n")), ""]
        text += line_end.join(lines) + line_end
    return text.encode() + draw(st.sampled_from([DONE, b"", b"data:[DONE]\n\n"]))


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({place % (len(stream) + 1) for place in places} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def read(parser: Parser, packets: Iterable[bytes]) -> bytes:
    return b"".join(parser.feed(packet) for packet in packets) + parser.flush()


def events(passed: bytes) -> list[Json]:
    """What a client understands of it; fails when a piece of it is no event with JSON."""
    assert passed == b"" or passed.endswith(b"\n\n")
    found = []
    for event in passed.split(b"\n\n")[:-1]:
        lines = event.split(b"\n")
        assert all(line.startswith(b"data:") for line in lines), event
        found.append(json.loads(b"\n".join(line.removeprefix(b"data:") for line in lines)))
    return found


@given(st.data(), CHUNKS, st.lists(st.integers(0, 3000), max_size=12))
def test_any_legal_stream_cut_anywhere_gives_its_events(
    data: st.DataObject, chunks: list[Json], places: list[int]
) -> None:
    stream = data.draw(framed(chunks))
    parser = Parser(pass_usage=True)
    assert events(read(parser, cut(stream, places))) == chunks
    assert parser.broken is None
    assert parser.done == (stream.endswith(b"[DONE]\n\n"))


@given(CHUNKS, st.lists(st.integers(0, 3000), max_size=12), st.booleans())
def test_what_is_framed_as_everybody_does_passes_byte_for_byte(
    chunks: list[Json], places: list[int], done: bool
) -> None:
    stream = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    parser = Parser(pass_usage=True)
    assert read(parser, cut(stream + (DONE if done else b""), places)) == stream
    assert parser.done is done


@given(CHUNKS, st.lists(st.integers(0, 3000), max_size=6))
def test_usage_that_nobody_asked_for_is_noted_and_kept_back(chunks: list[Json], places: list[int]) -> None:
    stream = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    parser = Parser()
    assert events(read(parser, cut(stream, places))) == [chunk for chunk in chunks if chunk != USAGE]
    assert (parser.usage is not None) is (USAGE in chunks)
    if parser.usage:
        assert (parser.usage.prompt_tokens, parser.usage.completion_tokens) == (3, 5)


@given(CHUNKS, st.integers(1, 3))
def test_it_is_finished_when_each_choice_has_told_why_it_ended(chunks: list[Json], choices: int) -> None:
    parser = Parser(choices=choices)
    read(parser, [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks])
    parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    ended = {part["index"] for part in parts if part.get("finish_reason")}
    seen = {part["index"] for part in parts}
    assert parser.finished is (ended == seen and len(ended) >= choices)


@pytest.mark.parametrize(
    ("chunks", "finished"),
    [
        ([content("a"), end()], True),
        ([content("a"), content("b", 1), end()], False),
        ([content("a"), content("b", 1), end(), end(1)], True),
        ([content("a")], False),
        ([role()], False),
        ([], False),
    ],
)
def test_where_done_says_so_the_choices_that_came_are_all(chunks: list[Json], finished: bool) -> None:
    parser = Parser(choices=3)
    for chunk in chunks:
        parser.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert not parser.finished
    parser.feed(DONE)
    assert parser.finished is finished


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_finish_reason_is_no_end(nothing: str | None) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": nothing}]}
    parser = Parser()
    parser.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n" + DONE)
    assert parser.done
    assert not parser.finished


@pytest.mark.parametrize("nothing", ["", None, {}, False])
def test_an_empty_error_is_none(nothing: object) -> None:
    event = b"data: " + json.dumps({**content("a"), "error": nothing}).encode() + b"\n\n"
    parser = Parser()
    assert parser.feed(event) == event
    assert parser.broken is None


@pytest.mark.parametrize("written", [b"data: [DONE] \n\n", b"data:  [DONE]\n\n", b"data: [DONE]\t\r\n\r\n"])
def test_spaces_around_done_are_nothing(written: bytes) -> None:
    event = b"data: " + json.dumps(end()).encode() + b"\n\n"
    for packets in ([event, written], [event + written]):
        parser = Parser()
        assert read(parser, packets) == event
        assert parser.done
        assert parser.broken is None


GARBAGE = st.sampled_from(
    [b"{", b'{"choices":[{"index":0', b"}", b"[]", b"null", b"17", b'"text"', b"<html>", b'{"choices":7}', b"\xff",
     b'{"choices":[{"index":0,"delta":{"content":"\xff"}}]}', b"{},{}", b"[DONE", b'{"usage":"many"}', b"NaN",
     b'{"choices":[]},{"choices":[]', b'"a":1}, {"choices":[]}', b""]
) | st.binary(max_size=20)  # fmt: skip


@given(CHUNKS, GARBAGE, CHUNKS, st.lists(st.integers(0, 3000), max_size=12))
@example([content("a")], b'{"choices":[{"index":0}', [content("b")], [])
def test_nothing_malformed_is_passed_on(good: list[Json], garbage: bytes, after: list[Json], places: list[int]) -> None:
    def frame(data: bytes) -> bytes:
        return b"data: " + data + b"\n\n"

    stream = b"".join(frame(json.dumps(chunk).encode()) for chunk in good) + frame(garbage)
    stream += b"".join(frame(json.dumps(chunk).encode()) for chunk in after)
    parser = Parser(pass_usage=True)
    passed = events(read(parser, cut(stream, places)))
    assert passed[: len(good)] == good
    if isinstance(parser.broken, Malformed):
        assert passed[len(good) :] == []
    assert all(isinstance(event, dict) for event in passed)


def test_an_event_spread_over_two_that_are_none_is_malformed() -> None:
    halves = [b'{"choices":[{"index":0}', b'{"index":1}]},{"choices":[]}']
    parser = Parser()
    assert parser.feed(b"".join(b"data: " + half + b"\n\n" for half in halves)) == b""
    assert isinstance(parser.broken, Malformed)


@given(st.integers(0, 4), st.lists(st.integers(0, 600), max_size=5))
def test_an_error_event_ends_the_stream_and_is_kept_for_who_asks(count: int, places: list[int]) -> None:
    good = [content(str(number)) for number in range(count)]
    error = {"error": {"message": "out of memory", "code": 500}}
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*good, error, content("late")])
    parser = Parser()
    assert events(read(parser, cut(stream, places))) == good
    assert isinstance(parser.broken, ErrorEvent)
    assert parser.broken.error == error


def test_an_error_event_that_can_not_be_read_whole_is_one_all_the_same() -> None:
    parser = Parser()
    assert parser.feed(b'data: {"error":{"message":"x"},"used":1e999}\n\n') == b""
    assert isinstance(parser.broken, ErrorEvent)


def test_text_that_is_no_utf8_is_malformed_before_and_after_the_first_content() -> None:
    bad = b'data: {"choices":[{"index":0,"delta":{"content":"\xff"}}]}\n\n'
    good = b"data: " + json.dumps(content("x")).encode() + b"\n\n"
    for before in (b"", good):
        parser = Parser()
        assert parser.feed(before + bad) == before
        assert isinstance(parser.broken, Malformed)


@pytest.mark.parametrize(
    ("event", "has"),
    [
        (role(), False),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, False),
        ({"choices": [{"delta": {"content": None}}]}, False),
        (USAGE, False),
        (content("x"), True),
        (end(), True),
        ({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}]}, True),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, True),
    ],
)
def test_content_is_more_than_who_speaks(event: Json, has: bool) -> None:
    parser = Parser()
    parser.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    assert parser.has_content is has


@pytest.mark.parametrize(("text", "has"), [("x", True), ("", False), (None, False)])
def test_a_completions_content_is_its_text(text: str | None, has: bool) -> None:
    parser = Parser(chat=False)
    parser.feed(b'data: {"choices":[{"index":0,"text":%b}]}\n\n' % json.dumps(text).encode())
    assert parser.has_content is has


def choice(**fields: Any) -> Json:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **fields}]}


# What real servers send, each named by one that does.
REAL = {
    "OpenAI's first": choice(delta={"role": "assistant", "content": "", "refusal": None}, logprobs=None),
    "OpenAI's last": choice(delta={}, finish_reason="stop"),
    "OpenAI's obfuscation": {**choice(delta={"content": "x"}), "obfuscation": "aXb", "usage": None},
    "OpenAI's function call": choice(delta={"function_call": {"name": "f", "arguments": ""}}),
    "OpenAI's usage": {**USAGE, "object": "chat.completion.chunk"},
    "Azure's prompt filter": {"choices": [], "object": "", "id": "", "prompt_filter_results": [{"prompt_index": 0}]},
    "Azure's content filter": choice(content_filter_offsets={"start_offset": 1}, finish_reason=None),
    "llama.cpp's first": choice(delta={"role": "assistant", "content": None}, finish_reason=None),
    "llama.cpp's progress": {**choice(delta={"role": "assistant", "content": None}), "prompt_progress": {"total": 9}},
    "llama.cpp's timings": {**choice(delta={}, finish_reason="stop"), "timings": {"prompt_n": 1}, "usage": {}},
    "llama.cpp's thoughts": choice(delta={"reasoning_content": "We"}),
    "llama.cpp's call": choice(
        delta={"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}
    ),
    "vLLM's call": choice(delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"a'}}]}),
    "vLLM's no calls": choice(delta={"content": "x", "tool_calls": []}, logprobs=None, token_ids=None),
    "vLLM's running usage": {**choice(delta={"content": "x"}), "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
    "Ollama's": choice(delta={"role": "assistant", "content": "x"}, finish_reason=""),
    "Ollama's thoughts": choice(delta={"role": "assistant", "content": "", "reasoning": "hm"}, finish_reason=None),
    "Ollama's usage": {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 1}},
    "LocalAI's usage": {"id": "c", "usage": {"prompt_tokens": 1}},
    "Mistral's parts": choice(delta={"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]}),
    "nothing new": choice(delta=None, finish_reason=None),
    "no index": {"choices": [{"delta": {"content": "x"}}]},
    "a null index": {"choices": [{"index": None, "delta": {"content": "x"}}]},
    "an end without a delta": choice(finish_reason="length"),
    "content and an end": choice(delta={"content": "x"}, finish_reason="content_filter"),
    "a completion's, too": choice(delta={"content": "x"}, text="x", message={"content": "x"}),
}
REAL_TEXT = {
    "OpenAI's": choice(text="x", logprobs=None, finish_reason=None),
    "vLLM's last": choice(text="", finish_reason="stop", stop_reason=None),
    "llama.cpp's progress": {**choice(text=""), "prompt_progress": {"total": 9}},
    "no text": choice(text=None, finish_reason=None),
    "an end without a text": choice(finish_reason="stop"),
    "a chat's, too": choice(text="x", delta={}),
    "usage": USAGE,
}


@pytest.mark.parametrize("before", ["", "content"])
@pytest.mark.parametrize("event", [*((True, name) for name in REAL), *((False, name) for name in REAL_TEXT)])
def test_what_real_servers_send_passes_byte_for_byte(event: tuple[bool, str], before: str) -> None:
    chat, name = event
    packet = b"data: " + json.dumps((REAL if chat else REAL_TEXT)[name]).encode() + b"\n\n"
    said = choice(delta={"content": "a"}) if chat else choice(text="a")
    first = b"data: " + json.dumps(said).encode() + b"\n\n" if before else b""
    parser = Parser(pass_usage=True, chat=chat)
    assert parser.feed(first + packet) == first + packet
    assert parser.feed(packet) == packet
    assert parser.broken is None


NO_CHUNKS: list[Any] = [
    choice(),
    choice(finish_reason=None),
    choice(delta="x"),
    choice(delta=[]),
    choice(delta={"content": 5}),
    choice(delta={"content": {"x": 1}}),
    choice(delta={"content": ["x"]}),
    choice(delta={"tool_calls": "x"}),
    choice(delta={"tool_calls": [None]}),
    choice(delta={}, finish_reason=5),
    choice(delta={}, finish_reason={"type": "abort"}),
    choice(message={"content": "x"}, finish_reason="stop"),
    {"choices": [{"index": -1, "delta": {"content": "x"}}]},
    {"choices": [{"index": "0", "delta": {"content": "x"}}]},
    {"choices": [[]]},
    choice(delta={"content": "\ud83d"}),
]
ERRORS: list[Any] = [
    {"error": {}},
    {"error": "oom"},
    {"error": {"message": "oom"}, "choices": 5},
    {"detail": "Internal error"},
    {"message": "oom", "code": 500},
    {"object": "error", "choices": []},
    {**choice(delta={"content": ""}), "error": {"code": 502}},
    choice(delta={}, error={"code": 502}),
    choice(delta={"content": "x"}, finish_reason="error"),
    choice(delta={}, finish_reason="abort"),
]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("event", "kind"), [*((event, Malformed) for event in NO_CHUNKS), *((event, ErrorEvent) for event in ERRORS)]
)
def test_what_is_no_chunk_breaks_the_stream(event: Json, kind: type[Exception], line_end: bytes) -> None:
    packet = b"data: " + json.dumps(event).encode() + line_end * 2
    for before in (b"", b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'):
        for packets in ([before, packet], [before + packet]):
            parser = Parser()
            assert read(parser, packets) == before
            assert isinstance(parser.broken, kind)


@pytest.mark.parametrize(
    "said", [{}, {"text": 5}, {"text": ["x"]}, {"text": {}}, {"finish_reason": None}, {"message": {"content": "x"}}]
)
def test_a_completion_says_a_text(said: Json) -> None:
    parser = Parser(chat=False)
    assert parser.feed(b"data: " + json.dumps(choice(**said)).encode() + b"\n\n") == b""
    assert isinstance(parser.broken, Malformed)


@pytest.mark.parametrize(
    ("said", "chat"), [({"text": "x"}, True), ({"text": "x", "finish_reason": "stop"}, True), ({"delta": {}}, False)]
)
def test_a_chunk_of_the_other_endpoint_is_none(said: Json, chat: bool) -> None:
    parser = Parser(chat=chat)
    assert parser.feed(b"data: " + json.dumps(choice(**said)).encode() + b"\n\n") == b""
    assert isinstance(parser.broken, Malformed)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (b'event: error\ndata: {"message":"x","code":500}', {"message": "x", "code": 500}),
        (b'event:error\ndata: {"choices":[]}', {"choices": []}),
        (b'data: {"choices":[]}\nevent: error', {"choices": []}),
        (b"event: error\ndata: out of memory", None),
        (b"event: error", None),
        (b'{"error":{"message":"x"}}', {"error": {"message": "x"}}),
    ],
)
@pytest.mark.parametrize("before", [b"", b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_an_error_that_is_not_told_as_a_chunk_is_one(block: bytes, error: Json, before: bytes, line_end: bytes) -> None:
    for places in ([], [3], [9, 30], range(200)):
        parser = Parser()
        packets = cut(before + (block + b"\n\n").replace(b"\n", line_end), places)
        assert read(parser, packets) == before
        assert isinstance(parser.broken, ErrorEvent)
        assert parser.broken.error == error


def test_json_in_the_place_of_an_event_is_malformed() -> None:
    parser = Parser()
    assert parser.feed(json.dumps(content("x")).encode() + b"\n\n") == b""
    assert isinstance(parser.broken, Malformed)


def test_other_names_of_events_are_nothing() -> None:
    event = b"data: " + json.dumps(content("x")).encode() + b"\n\n"
    for name in (b"message", b"chunk", b"errors", b""):
        assert Parser().feed(b"event: %b\n" % name + event) == event


NOTHING = [
    b"data: {}",
    b'data: {"choices":null}',
    b'data: {"error":null}',
    b'data: {"type":"ping"}',
    b"event: ping\ndata: {}",
    b"event: ping\ndata:",
    b"event: status\ndata: waiting",
    b"event: status\ndata: [1]",
]


@pytest.mark.parametrize("event", NOTHING)
def test_what_says_nothing_is_dropped(event: bytes) -> None:
    first = b"data: " + json.dumps(content("x")).encode() + b"\n\n"
    parser = Parser()
    assert parser.feed(event + b"\n\n") + parser.feed(first + event + b"\n\n") + parser.feed(first) == first * 2
    assert parser.broken is None


def test_what_is_a_chunk_by_its_id_passes_whatever_it_tells() -> None:
    event = b'data: {"id":"c","object":"chat.completion.chunk","timings":{"predicted_ms":5}}\n\n'
    first = b"data: " + json.dumps(content("x")).encode() + b"\n\n"
    parser = Parser()
    assert parser.feed(first) + parser.feed(event) == first + event
    assert parser.broken is None


@pytest.mark.parametrize("packet", [b"data: " + b"x" * LARGEST_EVENT, b"x" * (LARGEST_EVENT + 1)])
def test_memory_for_an_event_is_bounded(packet: bytes) -> None:
    parser = Parser()
    parser.feed(packet)
    parser.feed(b"y")
    assert isinstance(parser.broken, Malformed)


def test_small_packets_cost_what_large_ones_cost() -> None:
    """To look at all that waits with each of them would take seconds."""
    parser, begun = Parser(), time.process_time()
    parser.feed(b'data: {"id":"')
    for _ in range(LARGEST_EVENT // 8):
        parser.feed(b"yyyy")
    assert parser.broken is None
    assert time.process_time() - begun < 1.0


def test_what_came_before_an_event_that_is_too_large_is_passed() -> None:
    """Though it comes in the same packet."""
    first = b"data: " + json.dumps(content("x")).encode() + b"\n\n"
    parser = Parser()
    assert parser.feed(first * 2 + b"data: " + b"x" * LARGEST_EVENT) == first * 2
    assert isinstance(parser.broken, Malformed)
    parser = Parser()
    parser.feed(first + DONE + b"x" * (LARGEST_EVENT + 1))
    assert parser.done
    assert parser.broken is None


def test_after_done_nothing_is_passed() -> None:
    parser = Parser()
    assert read(parser, [DONE + b"data: " + json.dumps(content("late")).encode() + b"\n\n"]) == b""
    assert parser.done
