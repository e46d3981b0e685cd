"""``POST /v1/completions``: text, texts or token lists as prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..answer import Answer, Event, Part
from .chat import STREAM_HEADERS, choices_asked_for, envelope
from .config import Backend
from .generation import Generation, Usage, generate, usage_of


def complete(backend: Backend, body: dict[str, Any]) -> Answer:
    """The answer to a completion request: ``n`` choices for each prompt, prompts in their order."""
    prompts = _prompts(body.get("prompt", ""))
    plan = [(prompt, number) for prompt in prompts for number in range(choices_asked_for(backend, body))]
    choices = [generate(body, [prompt, body.get("suffix")], backend.tokens, number) for prompt, number in plan]
    if body.get("echo"):
        for (prompt, _), choice in zip(plan, choices, strict=True):
            choice.tokens.insert(0, prompt if isinstance(prompt, str) else "")
    usage = usage_of(prompts, choices)
    backend.tokens_out += usage.completion
    if body.get("stream"):
        return Answer(headers=dict(STREAM_HEADERS), events=_events(backend, body, choices, usage))
    answer = envelope(backend, body, "cmpl", "text_completion")
    answer["choices"] = [_choice(body, number, choice.tokens, choice.finish) for number, choice in enumerate(choices)]
    return Answer.of_json(answer | {"usage": usage.as_json()})


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _choice(body: dict[str, Any], number: int, tokens: list[str], finish: str | None) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": number,
        "text": "".join(tokens),
        "logprobs": None,
        "finish_reason": finish,
    }
    if body.get("logprobs") is not None:
        offsets = [sum(map(len, tokens[:position])) for position in range(len(tokens))]
        choice["logprobs"] = {
            "tokens": tokens,
            "token_logprobs": [-0.25] * len(tokens),
            "top_logprobs": [{token: -0.25} for token in tokens],
            "text_offset": offsets,
        }
    return choice


def _events(backend: Backend, body: dict[str, Any], choices: list[Generation], usage: Usage) -> Iterator[Event]:
    fields = envelope(backend, body, "cmpl", "text_completion")
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if wants_usage and backend.kind in ("openai", "vllm"):
        fields["usage"] = None
    for number, choice in enumerate(choices):
        for token in choice.tokens:
            yield Event(fields | {"choices": [_choice(body, number, [token], None)]})
        yield Event(fields | {"choices": [_choice(body, number, [], choice.finish)]}, Part.FINISH)
    if wants_usage:
        yield Event(fields | {"choices": [], "usage": usage.as_json()}, Part.USAGE)
    yield Event(b"[DONE]", Part.DONE)
