"""An answer kept in one form and wanted in the other: chunks put together, or a whole taken apart. Pure.

A server's answer may be passed on and yet have no other form: what stands in it is looked at here alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from apps.gateway.inference.streams.sse import DONE, UNREADABLE

Json = dict[str, Any]
UNPLAYABLE = (*UNREADABLE, AttributeError, IndexError, TypeError, ValueError)
"""What comes of an answer with something of another type than it should have."""
MOST_CALLS = 1024
"""Tools that one message calls."""
_SSE = b"data: "


class _Message(Struct):
    tool_calls: list[Json] | None = None


class _Choice(Struct):
    index: int | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Whole(Struct):
    choices: list[_Choice]
    object: str = ""


_whole = msgspec.json.Decoder(_Whole)


def is_sound(answer: bytes) -> bool:
    """Whether a whole answer is worth keeping: choices of which each says something."""
    try:
        choices = _whole.decode(answer).choices
    except UNREADABLE:
        return False
    return bool(choices) and all(choice.message is not None or choice.text is not None for choice in choices)


def to_plain(events: bytes) -> bytes:
    """The whole answer that a stream of chunks amounts to; one of UNPLAYABLE where they amount to none."""
    answer: Json = {}
    choices: dict[int, Json] = {}
    for chunk in _chunks(events):
        if not answer:
            kind = str(chunk.get("object", "")).removesuffix(".chunk")
            answer = {**chunk, "object": kind, "choices": []}
        if chunk.get("usage"):
            answer["usage"] = chunk["usage"]
        for part in chunk.get("choices") or ():
            index = part.get("index") or 0
            _add(choices.setdefault(index, {"index": index}), part)
    answer["choices"] = [choices[index] for index in sorted(choices)]
    if not all("message" in choice or "text" in choice for choice in answer["choices"]):
        raise ValueError("a choice that says nothing")
    return msgspec.json.encode(answer)


def to_events(answer: bytes, estimate: Callable[[int], bytes] | None = None) -> bytes:
    """The stream that a whole answer could have been: a chunk of content and a chunk of its end for each choice.

    With its usage where `estimate` is given, which makes the event of it out of the length of what was said, where the
    answer doesn't tell. One of UNPLAYABLE where it could have been none.
    """
    whole = msgspec.json.decode(answer)
    chat = "chat" in whole.get("object", "chat")
    head = {name: value for name, value in whole.items() if name not in ("choices", "usage")}
    if chat:
        head["object"] = "chat.completion.chunk"
    events, size = [], 0
    for choice in whole.get("choices") or ():
        rest = {name: value for name, value in choice.items() if name not in ("message", "text", "finish_reason")}
        said = _delta(choice.get("message") or {}) if chat else choice.get("text") or ""
        size += _length(said)
        content = {"delta" if chat else "text": said}
        end: Json = {"delta": {}} if chat else {"text": ""}
        events.append({**head, "choices": [{**rest, **content, "finish_reason": None}]})
        closing = {"index": choice.get("index", 0), **end, "finish_reason": choice.get("finish_reason") or "stop"}
        events.append({**head, "choices": [closing]})
    usage = b""
    if estimate and whole.get("usage"):
        events.append({**head, "choices": [], "usage": whole["usage"]})
    elif estimate:
        usage = estimate(size)
    return b"".join(_SSE + msgspec.json.encode(event) + b"\n\n" for event in events) + usage + DONE


def without_usage(events: bytes) -> bytes:
    """The events without those that tell usage alone; one of UNPLAYABLE where one can't be read."""
    kept = [
        event
        for event in events.split(b"\n\n")
        if not (b'"usage"' in event and event.startswith(_SSE + b"{") and _tells_usage_alone(event))
    ]
    return b"\n\n".join(kept)


def _tells_usage_alone(event: bytes) -> bool:
    chunk = msgspec.json.decode(_data(event))
    return bool(chunk.get("usage")) and not chunk.get("choices")


def _chunks(events: bytes) -> Iterator[Json]:
    for event in events.split(b"\n\n"):
        data = _data(event)
        if data and data != b"[DONE]":
            yield msgspec.json.decode(data)


def _data(event: bytes) -> bytes:
    """What an event says, which may stand in several lines."""
    return event.removeprefix(_SSE).replace(b"\n" + _SSE, b"\n")


def _delta(message: Json) -> Json:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]}


def _length(said: str | Json) -> int:
    """About how much was said: a text, or what a message has beside its role."""
    if isinstance(said, str):
        return len(said)
    parts = [value for name, value in said.items() if name != "role" and value]
    return sum(len(part if isinstance(part, str) else msgspec.json.encode(part)) for part in parts)


def _add(choice: Json, part: Json) -> None:
    """Adds one chunk's part of a choice to the choice."""
    if "delta" in part:
        _merge(choice.setdefault("message", {}), part["delta"] or {})
    if part.get("text") is not None:
        choice["text"] = choice.get("text", "") + part["text"]
    if part.get("finish_reason") is not None or "finish_reason" not in choice:
        choice["finish_reason"] = part.get("finish_reason")
    if part.get("logprobs"):
        _merge(choice.setdefault("logprobs", {}), part["logprobs"])


def _merge(whole: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls" and isinstance(value, list):
            _merge_calls(whole.setdefault("tool_calls", []), value)
        elif isinstance(value, str) and isinstance(whole.get(name), str) and name != "role":
            whole[name] += value
        elif isinstance(value, list) and isinstance(whole.get(name), list):
            whole[name] = whole[name] + value
        elif value is not None or name not in whole:
            whole[name] = value


def _merge_calls(calls: list[Json], deltas: list[Json]) -> None:
    for delta in deltas:
        index = delta.get("index", 0)
        if not 0 <= index < MOST_CALLS:
            raise ValueError("a call out of all order")
        while len(calls) <= index:
            calls.append({"function": {}})
        details = {name: value for name, value in delta.items() if name not in ("index", "function")}
        calls[index].update({name: value for name, value in details.items() if value is not None})
        _merge(calls[index]["function"], delta.get("function") or {})
