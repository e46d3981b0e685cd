"""An answer kept in one form and wanted in the other: chunks put together, or a whole taken apart. Pure."""

from collections.abc import Iterator
from typing import Any

import msgspec

from apps.gateway.inference.sse import DONE

Json = dict[str, Any]
_SSE = b"data: "


def to_plain(events: bytes) -> bytes:
    """The whole answer that a stream of chunks amounts to."""
    answer: Json = {}
    choices: dict[int, Json] = {}
    for chunk in _chunks(events):
        if not answer:
            kind = str(chunk.get("object", "")).removesuffix(".chunk")
            answer = {**chunk, "object": kind, "choices": []}
        if chunk.get("usage"):
            answer["usage"] = chunk["usage"]
        for part in chunk.get("choices") or ():
            _add(choices.setdefault(part.get("index", 0), {"index": part.get("index", 0)}), part)
    answer["choices"] = [choices[index] for index in sorted(choices)]
    return msgspec.json.encode(answer)


def to_events(answer: bytes, *, with_usage: bool) -> bytes:
    """The stream that a whole answer could have been: a chunk of content and a chunk of its end for each choice."""
    whole = msgspec.json.decode(answer)
    chat = "chat" in whole.get("object", "chat")
    head = {**{name: value for name, value in whole.items() if name not in ("choices", "usage")}}
    if chat:
        head["object"] = "chat.completion.chunk"
    events = []
    for choice in whole.get("choices") or ():
        rest = {name: value for name, value in choice.items() if name not in ("message", "text", "finish_reason")}
        content = {"delta": _delta(choice.get("message") or {})} if chat else {"text": choice.get("text", "")}
        end: Json = {"delta": {}} if chat else {"text": ""}
        events.append({**head, "choices": [{**rest, **content, "finish_reason": None}]})
        closing = {"index": choice.get("index", 0), **end, "finish_reason": choice.get("finish_reason") or "stop"}
        events.append({**head, "choices": [closing]})
    if with_usage and whole.get("usage"):
        events.append({**head, "choices": [], "usage": whole["usage"]})
    return b"".join(_SSE + msgspec.json.encode(event) + b"\n\n" for event in events) + DONE


def without_usage(events: bytes) -> bytes:
    """The events without those that tell usage alone."""
    kept = [
        event
        for event in events.split(b"\n\n")
        if not (b'"usage"' in event and event.startswith(_SSE + b"{") and _tells_usage_alone(event))
    ]
    return b"\n\n".join(kept)


def _tells_usage_alone(event: bytes) -> bool:
    chunk = msgspec.json.decode(event.removeprefix(_SSE))
    return bool(chunk.get("usage")) and not chunk.get("choices")


def _chunks(events: bytes) -> Iterator[Json]:
    for event in events.split(b"\n\n"):
        data = event.removeprefix(_SSE)
        if data and data != b"[DONE]":
            yield msgspec.json.decode(data.replace(b"\ndata: ", b"\n"))


def _delta(message: Json) -> Json:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]}


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
        while len(calls) <= index:
            calls.append({"function": {}})
        details = {name: value for name, value in delta.items() if name not in ("index", "function")}
        calls[index].update({name: value for name, value in details.items() if value is not None})
        _merge(calls[index]["function"], delta.get("function") or {})
