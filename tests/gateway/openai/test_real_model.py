"""Requests that are no requests, to the real demo model: each is told its fault, and nobody else is harmed."""

from typing import Any

import pytest

from tests.gateway.client import Client

MODEL = "smollm2:135m"
CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER: dict[str, Any] = {"role": "user", "content": "Hello"}


def called(**changed: Any) -> dict[str, Any]:
    """A conversation in which the model has called a function, or nearly."""
    return {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, **changed}]}]}


def said(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


MALFORMED: list[tuple[dict[str, Any], str | None]] = [
    (said({"type": "text"}), "messages[0].content[0].text"),
    (said({"type": "text", "text": "x"}, {"type": "image_url"}), "messages[0].content[1].image_url"),
    (said({"type": "input_audio", "input_audio": {}}), "messages[0].content[0].input_audio.data"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"x": 1}]}]}, "messages[0].tool_calls[0].id"),
    (called(function={}), "messages[1].tool_calls[0].function.name"),
    (called(type="custom"), "messages[1].tool_calls[0].custom"),
    (called(function={"name": "f"}), None),
    (said({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), None),
    ({"messages": [USER], "tools": [{"type": "x"}]}, None),
    ({"messages": [USER], "reasoning_format": "x"}, None),
]


@pytest.mark.parametrize("field", ["x", "y"])
async def test_malformed_requests_are_refused_and_do_no_harm(client: Client, field: str) -> None:
    for body, param in MALFORMED:
        reply = await client.post({"model": MODEL, "user": field, "max_tokens": 1, **body})
        assert reply.status == 400, (body, reply.body)
        assert reply.json()["error"]["param"] == param, (body, reply.body)
    reply = await client.post({"model": MODEL, "messages": [USER], "max_tokens": 1})
    assert reply.status == 200
