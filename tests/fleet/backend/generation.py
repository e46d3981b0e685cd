"""What the model says to a request: tokens, tool calls, why it stopped. Below the shapes of the endpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .text import count_tokens, example, pieces, seed_of, words

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class Generation:
    """One choice: its tokens, or the tool that is called and the pieces of its arguments."""

    tokens: list[str]
    finish: Finish
    tool: str | None = None
    call_id: str = ""

    @property
    def text(self) -> str:
        """All tokens joined."""
        return "".join(self.tokens)


@dataclass(slots=True)
class Usage:
    """Tokens read and written."""

    prompt: int
    completion: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        total = self.prompt + self.completion
        counts = {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}
        return counts | self.extra


def generate(body: dict[str, Any], prompt: Any, default_tokens: int, choice: int = 0) -> Generation:
    """One choice for ``prompt`` (any JSON value). Equal prompt, model, seed and choice give equal tokens."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    tool = _tool_called(body)
    seed = seed_of([prompt, body.get("model"), body.get("seed"), choice])
    if tool is not None:
        arguments = msgspec.json.encode(example(tool.get("parameters", {}))).decode()
        return Generation(pieces(arguments, default_tokens), "tool_calls", tool.get("name", ""), f"call_{seed:08x}")
    schema = _schema_asked_for(body)
    if schema is not None:
        tokens = pieces(msgspec.json.encode(example(schema)).decode(), default_tokens)
        return Generation(tokens, "stop")
    count = min(limit, default_tokens) if isinstance(limit, int) else default_tokens
    finish: Finish = "length" if isinstance(limit, int) and limit < default_tokens else "stop"
    tokens = list(words(seed, count))
    stopped = _stopped(tokens, body.get("stop"))
    return Generation(tokens, finish) if stopped is None else Generation(stopped, "stop")


def usage_of(prompt: Any, generations: list[Generation]) -> Usage:
    """What the choices together have used."""
    return Usage(count_tokens(prompt), sum(len(generation.tokens) for generation in generations))


def _tool_called(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function that is called: the one that tool_choice names, else the first."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice in (None, "none"):
        return None
    functions: list[dict[str, Any]] = [tool.get("function", {}) for tool in tools]
    wanted = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    return next((function for function in functions if function.get("name") == wanted), functions[0])


def _schema_asked_for(body: dict[str, Any]) -> dict[str, Any] | None:
    form = body.get("response_format") or {}
    if form.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    if form.get("type") == "json_schema":
        schema: dict[str, Any] = form.get("json_schema", {}).get("schema", {})
        return schema
    return None


def _stopped(tokens: list[str], stop: Any) -> list[str] | None:
    """The tokens before the first stop text, or None when none comes."""
    stops = [stop] if isinstance(stop, str) else stop or []
    text = "".join(tokens)
    ends = [text.find(mark) for mark in stops if mark and mark in text]
    if not ends:
        return None
    kept, left = [], min(ends)
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept
