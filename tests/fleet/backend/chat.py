"""``POST /v1/chat/completions`` as each kind of server answers it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..answer import Answer, Event, Part
from .config import Backend
from .generation import Generation, Usage, generate, usage_of
from .text import seed_of

CREATED = 1_700_000_000  # fixed, so that equal requests have equal answers
STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache"}


def chat(backend: Backend, body: dict[str, Any]) -> Answer:
    """The answer to a chat request, streamed if it asks for that."""
    messages = body.get("messages", [])
    choices = [generate(body, messages, backend.tokens, number) for number in range(choices_asked_for(backend, body))]
    usage = usage_of(messages, choices)
    backend.tokens_out += usage.completion
    if body.get("stream"):
        return Answer(headers=dict(STREAM_HEADERS), events=_events(backend, body, choices, usage))
    return Answer.of_json(_whole(backend, body, choices, usage))


def choices_asked_for(backend: Backend, body: dict[str, Any]) -> int:
    """How many choices the request gets: Ollama doesn't look at ``n``."""
    return 1 if backend.kind == "ollama" else body.get("n") or 1


def envelope(backend: Backend, body: dict[str, Any], prefix: str, kind: str) -> dict[str, Any]:
    """The fields that every answer and every chunk begins with; ``x_echo`` gives the whole request back."""
    fields: dict[str, Any] = {
        "id": f"{prefix}-{seed_of(body):08x}",
        "object": kind,
        "created": CREATED,
        "model": body.get("model", backend.models[0]),
    }
    if backend.kind in ("openai", "ollama", "llamacpp"):
        fields["system_fingerprint"] = {"ollama": "fp_ollama", "llamacpp": "b6000-fleet"}.get(backend.kind, "fp_fleet")
    if body.get("x_echo") is True:
        fields["x_echo"] = body
    return fields


def _whole(backend: Backend, body: dict[str, Any], choices: list[Generation], usage: Usage) -> dict[str, Any]:
    answer = envelope(backend, body, "chatcmpl", "chat.completion")
    answer["choices"] = [_choice(backend, body, number, choice) for number, choice in enumerate(choices)]
    answer["usage"] = usage.as_json()
    return answer | _timings(backend, usage)


def _choice(backend: Backend, body: dict[str, Any], number: int, choice: Generation) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.tool is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [_call(choice, choice.text)]}
    result = {"index": number, "message": message, "logprobs": None, "finish_reason": choice.finish}
    if body.get("logprobs"):
        result["logprobs"] = _logprobs(choice.tokens, body.get("top_logprobs") or 0)
    if backend.kind == "vllm":
        result["stop_reason"] = None
    return result


def _call(choice: Generation, arguments: str) -> dict[str, Any]:
    return {"id": choice.call_id, "type": "function", "function": {"name": choice.tool, "arguments": arguments}}


def _logprobs(tokens: list[str], top: int) -> dict[str, Any]:
    return {"content": [_logprob(token, top) for token in tokens], "refusal": None}


def _logprob(token: str, top: int) -> dict[str, Any]:
    entry = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    others = [{"token": f"{token}{rank}", "logprob": -1.0 - rank, "bytes": None} for rank in range(1, top)]
    return entry | {"top_logprobs": [dict(entry), *others] if top else []}


def _timings(backend: Backend, usage: Usage) -> dict[str, Any]:
    """llama.cpp reports its speed in an own field."""
    if backend.kind != "llamacpp":
        return {}
    return {"timings": {"prompt_n": usage.prompt, "predicted_n": usage.completion, "predicted_per_second": 117.0}}


def _events(backend: Backend, body: dict[str, Any], choices: list[Generation], usage: Usage) -> Iterator[Event]:
    fields = envelope(backend, body, "chatcmpl", "chat.completion.chunk")
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if wants_usage and backend.kind in ("openai", "vllm"):
        fields["usage"] = None
    if backend.kind != "ollama":  # Ollama says the role in each chunk instead
        for number in range(len(choices)):
            delta = {"role": "assistant", "content": None if backend.kind == "llamacpp" else ""}
            yield Event(_chunk(fields, number, delta), Part.ROLE)
    for position in range(max(len(choice.tokens) for choice in choices)):
        for number, choice in enumerate(choices):
            if position < len(choice.tokens):
                yield Event(_content_chunk(backend, body, fields, number, choice, position))
    for number, choice in enumerate(choices):
        delta = {"role": "assistant", "content": ""} if backend.kind == "ollama" else {}
        timings = _timings(backend, usage)
        yield Event(_chunk(fields, number, delta, choice.finish) | timings, Part.FINISH)
    if wants_usage:
        yield Event(fields | {"choices": [], "usage": usage.as_json()}, Part.USAGE)
    yield Event(b"[DONE]", Part.DONE)


def _content_chunk(
    backend: Backend, body: dict[str, Any], fields: dict[str, Any], number: int, choice: Generation, position: int
) -> dict[str, Any]:
    token = choice.tokens[position]
    delta: dict[str, Any] = {"content": token}
    if choice.tool is not None:
        call: dict[str, Any] = {"function": {"arguments": token}}
        delta = {"tool_calls": [{"index": 0, **(_call(choice, token) if position == 0 else call)}]}
    if backend.kind == "ollama":
        delta = {"role": "assistant", **delta}
    chunk = _chunk(fields, number, delta)
    if body.get("logprobs"):
        chunk["choices"][0]["logprobs"] = _logprobs([token], body.get("top_logprobs") or 0)
    return chunk


def _chunk(fields: dict[str, Any], number: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return fields | {"choices": [{"index": number, "delta": delta, "finish_reason": finish}]}
