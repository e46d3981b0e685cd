"""A stream put together is the plain answer, and a plain answer taken apart is its stream."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.inference.caching import replay
from apps.gateway.inference.streams.sse import DONE, Parser

Json = dict[str, Any]
TEXT = st.text(max_size=12) | st.sampled_from(["\n\n", "data: [DONE]", "{", "é字\u2028"])
USAGE: Json = {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}


@st.composite
def tool_calls(draw: st.DrawFn) -> list[Json]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": draw(st.sampled_from(["look", "go"])), "arguments": draw(TEXT)},
        }
        for number in range(draw(st.integers(1, 3)))
    ]


@st.composite
def chat_answers(draw: st.DrawFn) -> Json:
    choices = []
    for index in range(draw(st.integers(1, 3))):
        message: Json = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            message["tool_calls"] = draw(tool_calls())
        if draw(st.booleans()):
            message["reasoning_content"] = draw(TEXT)
        choice = {"index": index, "message": message, "finish_reason": draw(st.sampled_from(["stop", "length"]))}
        if draw(st.booleans()):
            tokens = [{"token": token, "logprob": -0.5} for token in draw(st.lists(TEXT, min_size=1, max_size=3))]
            choice["logprobs"] = {"content": tokens}
        choices.append(choice)
    answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    return {**answer, "usage": USAGE} if draw(st.booleans()) else answer


@st.composite
def text_answers(draw: st.DrawFn) -> Json:
    choices = [
        {"index": index, "text": draw(TEXT), "finish_reason": draw(st.sampled_from(["stop", "length"]))}
        for index in range(draw(st.integers(1, 3)))
    ]
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices}


def events(chunks: Sequence[Json]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + DONE


def pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def streamed(answer: Json, size: int) -> bytes:
    """How servers stream an answer: who speaks, content in pieces, calls piece by piece, why it ended, usage."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")}
    head["object"] = head["object"].replace("chat.completion", "chat.completion.chunk")
    parts: list[Json] = []
    for choice in answer["choices"]:
        index = choice["index"]
        if "text" in choice:
            parts += [{"index": index, "text": piece, "finish_reason": None} for piece in pieces(choice["text"], size)]
            parts.append({"index": index, "text": "", "finish_reason": choice["finish_reason"]})
            continue
        message = choice["message"]
        deltas: list[Json] = [{"role": message["role"], "content": ""}]
        for name in ("reasoning_content", "content"):
            if name in message:
                deltas += [{name: piece} for piece in pieces(message[name], size) or [""]]
        for number, call in enumerate(message.get("tool_calls", ())):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            deltas.append({"tool_calls": [{**call, "index": number, "function": {"name": name, "arguments": ""}}]})
            deltas += [
                {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
                for piece in pieces(arguments, size)
            ]
        parts += [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
        parts += [
            {"index": index, "delta": {}, "logprobs": {"content": [token]}, "finish_reason": None}
            for token in choice.get("logprobs", {}).get("content", ())
        ]
        parts.append({"index": index, "delta": {}, "finish_reason": choice["finish_reason"]})
    chunks = [{**head, "choices": [part]} for part in parts]
    if "usage" in answer:
        chunks.append({**head, "choices": [], "usage": answer["usage"]})
    return events(chunks)


@given(chat_answers() | text_answers(), st.integers(1, 5))
def test_a_stream_put_together_is_the_plain_answer(answer: Json, size: int) -> None:
    assert json.loads(replay.to_plain(streamed(answer, size))) == answer


@given(chat_answers() | text_answers())
def test_an_answer_taken_apart_and_put_together_is_itself(answer: Json) -> None:
    apart = replay.to_events(json.dumps(answer).encode(), lambda _: b"")
    assert json.loads(replay.to_plain(apart)) == answer


@given(chat_answers() | text_answers(), st.booleans())
def test_what_it_is_taken_apart_to_is_a_good_stream(answer: Json, with_usage: bool) -> None:
    apart = replay.to_events(json.dumps(answer).encode(), (lambda _: b"") if with_usage else None)
    chat = answer["object"] == "chat.completion"
    parser = Parser(choices=len(answer["choices"]), pass_usage=True, chat=chat)
    assert parser.feed(apart) == apart.removesuffix(DONE)
    assert parser.finished
    assert parser.done
    assert (parser.usage is not None) is (with_usage and "usage" in answer)
    chunks = [json.loads(event.removeprefix("data: ")) for event in apart.decode().split("\n\n")[:-2]]
    assert {chunk["id"] for chunk in chunks} == {answer["id"]}
    assert {chunk["object"] for chunk in chunks} <= {"chat.completion.chunk", "text_completion"}


@given(chat_answers(), st.integers(1, 5))
def test_usage_alone_is_taken_out(answer: Json, size: int) -> None:
    bare = {name: value for name, value in answer.items() if name != "usage"}
    assert replay.without_usage(streamed(answer, size)) == streamed(bare, size)


def test_usage_that_stands_in_several_lines_is_taken_out_too() -> None:
    text = b'data: {"choices": [{"index": 0, "text": "a",\ndata: "finish_reason": "stop"}], "usage": null}\n\n'
    usage = b'data: {"choices": [],\ndata: "usage": {"prompt_tokens": 1}}\n\n'
    assert replay.without_usage(text + usage + DONE) == text + DONE


def test_usage_that_the_answer_does_not_tell_is_made_of_the_length_of_what_was_said() -> None:
    call = {"id": "c", "function": {"name": "go", "arguments": "{}"}}
    sizes = []
    for content in ({"message": {"role": "assistant", "content": "x" * 400, "tool_calls": None}}, {"text": "x" * 400}):
        answer = {"object": "chat.completion" if "message" in content else "text_completion", "choices": [content]}
        made = replay.to_events(json.dumps(answer).encode(), lambda size: sizes.append(size) or b"data: {}\n\n")  # type: ignore[func-returns-value]
        assert made.endswith(b"data: {}\n\n" + DONE)
    assert sizes == [400, 400]
    answer = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}]}
    replay.to_events(json.dumps(answer).encode(), lambda size: sizes.append(size) or b"")  # type: ignore[func-returns-value]
    assert 20 < sizes[-1] < 120


@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        ('{"choices":[{"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}', True),
        ('{"choices":[{"text":"x","index":null}],"object":"text_completion","usage":5}', True),
        ('{"choices":[]}', False),
        ('{"choices":[{}]}', False),
        ('{"choices":[{"message":null}]}', False),
        ('{"choices":["x"]}', False),
        ('{"choices":[null]}', False),
        ('{"choices":[{"message":"x"}]}', False),
        ('{"choices":[{"message":{"tool_calls":[1]}}]}', False),
        ('{"choices":[{"text":["x"]}]}', False),
        ('{"object":5,"choices":[{"text":"x"}]}', False),
        ('{"data":[]}', False),
        ("[]", False),
    ],
)
def test_what_is_worth_keeping_can_be_taken_apart(answer: str, sound: bool) -> None:
    assert replay.is_sound(answer.encode()) is sound
    if sound:
        assert replay.to_events(answer.encode(), lambda _: b"").endswith(DONE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3_000_000) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "index",
                    "delta",
                    "message",
                    "text",
                    "tool_calls",
                    "function",
                    "object",
                    "usage",
                    "logprobs",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(["choices", "object", "usage"]), JSON | st.lists(JSON), max_size=3))
def test_whatever_comes_is_played_or_said_to_be_unplayable(answer: Json) -> None:
    with contextlib.suppress(*replay.UNPLAYABLE):
        replay.to_events(json.dumps(answer).encode(), lambda _: b"")
    with contextlib.suppress(*replay.UNPLAYABLE):
        assert len(replay.to_plain(events([answer, answer]))) < 100_000
    with contextlib.suppress(*replay.UNPLAYABLE):
        replay.without_usage(events([answer]))


@pytest.mark.parametrize("index", [None, -1, 2_000_000, "0", 10**30])
def test_a_call_out_of_all_order_is_unplayable(index: Any) -> None:
    delta = {"tool_calls": [{"index": index, "function": {"name": "go"}}]}
    with pytest.raises(replay.UNPLAYABLE):
        replay.to_plain(events([{"choices": [{"index": 0, "delta": delta}]}]))


def test_a_choice_that_has_only_an_end_is_unplayable() -> None:
    with pytest.raises(replay.UNPLAYABLE):
        replay.to_plain(events([{"choices": [{"index": 0, "finish_reason": "stop"}]}]))


def test_calls_whose_index_comes_late_or_whose_fields_come_one_by_one() -> None:
    def chunk(call: Json) -> Json:
        return {
            "id": "c",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"tool_calls": [call]}}],
        }

    parts: list[Json] = [
        {"index": 1, "id": "b", "type": "function", "function": {"name": "go", "arguments": "{"}},
        {"index": 0, "id": "a", "type": "function", "function": {"name": "look"}},
        {"index": 0, "id": None, "function": {"arguments": "{}"}},
        {"index": 1, "function": {"name": None, "arguments": "}"}},
    ]
    [choice] = json.loads(replay.to_plain(events([chunk(part) for part in parts])))["choices"]
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "go", "arguments": "{}"}},
    ]
