"""Whole answers: what a 200 must hold, by endpoint, to be one."""

import json
from typing import Any

import pytest

from apps.gateway.inference.http.failures import Failure
from apps.gateway.inference.http.upstream import check_answer
from apps.orchestration.fleet import Server
from citadel.errors import BackendRefused

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def check(path: str, answer: Any) -> None:
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    check_answer(body, "application/json", Server("s", "http://h", "openai"), path)


def says(message: Any, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, **more}]}


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, says({"role": "assistant", "content": "x"}, finish_reason="stop", logprobs=None)),
        (CHAT, says({"role": "assistant", "content": ""})),
        (CHAT, says({"role": "assistant"})),
        (CHAT, says({"content": "x"}, finish_reason=None)),
        (CHAT, says({"role": "assistant", "content": None, "tool_calls": [CALL]}, finish_reason="tool_calls")),
        (CHAT, says({"role": "assistant", "content": None, "refusal": "no"}, content_filter_results={})),
        (CHAT, says({"role": "assistant", "content": "", "reasoning_content": "hm"}, finish_reason="length")),
        (CHAT, says({"role": "assistant", "content": "x", "tool_calls": None}, error=None)),
        (CHAT, says({"role": "assistant", "content": [{"type": "text", "text": "x"}]})),
        (CHAT, {**says({"role": "assistant", "content": "x"}), "error": {}, "timings": {}, "usage": 5}),
        (COMPLETIONS, {"choices": [{"text": "x", "finish_reason": "stop"}, {"text": ""}]}),
        (COMPLETIONS, {"object": "text_completion", "choices": [{"index": 0, "text": "x", "logprobs": {}}]}),
        (EMBEDDINGS, {"object": "list", "data": [{"embedding": [1]}]}),
    ],
)
def test_what_real_servers_answer_is_one(path: str, answer: Any) -> None:
    check(path, answer)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, {"choices": []}),
        (CHAT, {"choices": [{}]}),
        (CHAT, {"choices": [None]}),
        (CHAT, {"choices": ["x"]}),
        (CHAT, {"choices": {}}),
        (CHAT, says(None)),
        (CHAT, says({})),
        (CHAT, says("x")),
        (CHAT, says({"role": "assistant", "content": 5})),
        (CHAT, says({"role": "assistant", "content": {"x": 1}})),
        (CHAT, says({"role": "assistant", "content": ["x"]})),
        (CHAT, says({"role": "assistant", "tool_calls": {}})),
        (CHAT, says({"role": "assistant", "tool_calls": [None]})),
        (CHAT, says({"role": "assistant", "content": "x"}, finish_reason=5)),
        (CHAT, {"choices": [{"text": "x"}]}),
        (CHAT, {"choices": [{"delta": {"content": "x"}}]}),
        (CHAT, {"message": {}, "done": True}),
        (CHAT, {"data": [{"embedding": [1]}]}),
        (CHAT, {"choices": [says({"role": "assistant", "content": "x"})["choices"][0], {}]}),
        (COMPLETIONS, {"choices": [{}]}),
        (COMPLETIONS, {"choices": [{"text": None}]}),
        (COMPLETIONS, {"choices": [{"text": ["x"]}]}),
        (COMPLETIONS, says({"role": "assistant", "content": "x"})),
        (EMBEDDINGS, {"data": []}),
        (EMBEDDINGS, {"data": {}}),
        (EMBEDDINGS, {"choices": [{"text": "x"}]}),
        (CHAT, ""),
        (CHAT, " \n"),
        (CHAT, "null"),
        (CHAT, '{"choices":[{"message":{"role":"assistant","content":"x"}}]} {}'),
        (CHAT, 'data: {"choices":[{"message":{"role":"assistant","content":"x"}}]}\n\n'),
        (CHAT, '{"choices":[{"message":{"role":"assistant","content":"x"}}]'),
    ],
)
def test_what_says_nothing_is_none(path: str, answer: Any) -> None:
    with pytest.raises(Failure, match="malformed"):
        check(path, answer)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"error": {"message": "oom"}, "finish_reason": "error"}]}, "status_500"),
        ({"choices": [{"error": {"code": 503}, "message": {"role": "assistant", "content": "x"}}]}, "status_503"),
        (says({"role": "assistant", "content": "x"}, finish_reason="error"), "status_500"),
        (says({"role": "assistant", "content": "x"}, finish_reason="abort"), "status_500"),
        ({"error": {"code": 503}, "choices": "none"}, "status_503"),
        ({"message": "busy", "code": 429}, "rate_limited"),
        ({"detail": "Internal error"}, "status_500"),
        ({"object": "error", "message": "x"}, "status_500"),
    ],
)
def test_an_error_is_told_as_what_it_is(answer: Any, reason: str) -> None:
    with pytest.raises(Failure) as raised:
        check(CHAT, answer)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"error": {"message": "bad", "code": "400"}}]},
        {"message": "bad", "type": "invalid_request_error"},
        {"error": {"message": "bad", "type": "BadRequestError"}, "choices": [5]},
    ],
)
def test_the_requests_own_fault_is_told_as_its_own(answer: Any) -> None:
    with pytest.raises(BackendRefused, match="bad"):
        check(CHAT, answer)
