"""Unchanged client packages work by base URL and key alone: the same conversation in three of them."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CHAT_MODEL, EMBEDDING_MODEL, KINDS, Served
from tests.clients.installed import OPENAI_1, OPENAI_NODE, for_node, for_python
from tests.fleet.record import Exchange
from tests.held_up import HELD_UP
from tests.instance import Instance

HERE = Path(__file__).parent
LIMIT = 120.0
SECONDS_TO_NOTICE = 1.0 + HELD_UP
"""Within which the server is let go when a client has left."""


@dataclass(frozen=True)
class Conversation:
    """What a package told, and what the servers saw of it."""

    package: str
    facts: dict[str, Any]
    seen: list[Exchange]
    """By the server for trouble."""
    served: Mapping[str, Served]

    def requests(self, text: str) -> list[Exchange]:
        """What the server for trouble saw of the requests of this package that hold `text`."""
        return [request for request in self.seen if f"{text} {self.package}" in request.body]


@pytest.fixture(scope="package", params=["newest", "release-1", "node"])
def conversation(request: pytest.FixtureRequest, citadel: Instance, served: Mapping[str, Served]) -> Conversation:
    """Everything once, with one package."""
    package: str = request.param
    command, environment = _program(package)
    trouble = served["trouble"].server
    trouble.behave("error 429 retry_after=1", body=f"busy once {package}", next=1)
    trouble.behave("error 503 retry_after=1", body=f"not ready once {package}", next=1)
    test_models = [served[kind].model for kind in KINDS]
    plan = {
        "base_url": f"{citadel.url}/v1",
        "key": citadel.key(),
        "limited_key": citadel.key(requests_per_minute=1),
        "auditors_key": citadel.key(role="auditor"),
        "models": [*test_models, CHAT_MODEL],
        "test_models": test_models,
        "embedding_models": [EMBEDDING_MODEL, *test_models],
        "trouble": served["trouble"].model,
    }
    done = subprocess.run(
        command, input=json.dumps(plan), env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    trouble.wait_for(lambda log: all(entry.ended for entry in log))
    return Conversation(package, json.loads(done.stdout), trouble.log(), served)


def _program(package: str) -> tuple[list[str], dict[str, str]]:
    """The command that has the conversation, and its environment."""
    if package == "node":
        if not (shutil.which("node") and shutil.which("npm")):
            warnings.warn("The openai package for Node was not tried: node or npm is missing.", stacklevel=2)
            pytest.skip("node and npm are not installed on this machine")
        return ["node", str(HERE / "conversation.mjs"), package, str(for_node(OPENAI_NODE))], dict(os.environ)
    command = [sys.executable, str(HERE / "conversation.py"), package]
    if package == "newest":
        return command, dict(os.environ)
    return command, {**os.environ, "PYTHONPATH": str(for_python(OPENAI_1))}


def test_the_package_is_the_one_that_was_meant(conversation: Conversation) -> None:
    major = conversation.facts["version"].partition(".")[0]
    assert major == {"newest": "3", "release-1": "1", "node": "7"}[conversation.package]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_and_streamed_answers_of_each_kind_of_server_are_the_same(conversation: Conversation, kind: str) -> None:
    told = conversation.facts["models"][conversation.served[kind].model]
    chat = told["chat"]
    assert chat["role"] == "assistant"
    assert chat["finish"] == "length"
    assert chat["tokens"] == 8
    assert told["stream"] == {"text": chat["text"], "finish": "length", "tokens": None, "without_choice": 0}
    assert told["stream_with_usage"] == {"text": chat["text"], "finish": "length", "tokens": 8, "without_choice": 1}
    assert told["completion"] == {"text": told["completion_stream"], "tokens": 8}
    assert told["completions"] == told["completions_stream"]
    assert set(told["completions"]) == {"0", "1"}
    assert isinstance(told["schema"]["good"], bool)


def test_a_real_model_chats_streams_completes_and_fills_in_a_schema(conversation: Conversation) -> None:
    told = conversation.facts["models"][CHAT_MODEL]
    assert told["chat"]["text"]
    assert 1 <= told["chat"]["tokens"] <= 8
    for streamed in (told["stream"], told["stream_with_usage"]):
        assert streamed["text"]
        assert streamed["finish"] in ("stop", "length")
    assert 1 <= told["stream_with_usage"]["tokens"] <= 8
    assert told["completion"]["tokens"] <= 8
    assert told["completion_stream"]
    assert set(told["completions"]) == set(told["completions_stream"]) == {"0", "1"}
    assert isinstance(told["schema"]["good"], bool)


@pytest.mark.parametrize("kind", KINDS)
def test_tools_are_called_whole_and_streamed(conversation: Conversation, kind: str) -> None:
    told = conversation.facts["tools"][conversation.served[kind].model]
    assert told["whole"] == told["stream"]
    assert told["whole"]["name"] == "weather"
    assert told["whole"]["finish"] == "tool_calls"
    assert set(json.loads(told["whole"]["arguments"])) == {"city"}


@pytest.mark.parametrize("kind", KINDS)
def test_options_reach_the_server(conversation: Conversation, kind: str) -> None:
    told = conversation.facts["options"][conversation.served[kind].model]
    first = told["texts"][0]
    assert len(set(told["texts"])) == (1 if kind == "ollama" else 2)  # which doesn't know `n`
    assert told["streamed"] == told["texts"]
    assert told["logprobs"] == first
    assert told["rivals"] == 2
    assert told["stopped"] == first.partition(told["stop_word"])[0]
    once, again, other = told["seeded"]
    assert once == again != other


def test_embeddings_come_as_vectors_in_either_encoding(conversation: Conversation) -> None:
    for told in conversation.facts["embeddings"].values():
        assert len(told["floats"]) == 384
        assert told["by_default"] == pytest.approx(told["floats"], abs=1e-6)
        assert told["used"] > 0
        assert told["of_tokens"] == [0, 1]
        assert told["of_one"]


def test_models_are_listed_and_found_by_names_with_slash_and_colon(conversation: Conversation) -> None:
    names = [*(conversation.served[kind].model for kind in KINDS), CHAT_MODEL]
    assert conversation.facts["catalogue"]["retrieved"] == names
    ids = conversation.facts["catalogue"]["ids"]
    assert set(names) <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("wrong_key", {"class": "AuthenticationError", "status": 401, "code": "invalid_api_key"}),
        ("unknown_model", {"class": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}),
        ("wrong_type", {"class": "BadRequestError", "status": 400, "code": "invalid_type", "param": "temperature"}),
        ("out_of_bounds", {"class": "BadRequestError", "status": 400, "code": "invalid_value", "param": "temperature"}),
        ("blamed", {"class": "BadRequestError", "status": 400, "param": "temperature"}),
        ("forbidden", {"class": "PermissionDeniedError", "status": 403, "code": "forbidden"}),
        ("busy", {"class": "RateLimitError", "status": 429, "type": "rate_limit_error", "retry_after": "7"}),
        ("crashed", {"class": "InternalServerError", "status": 502, "code": "upstream_failed"}),
        ("late", {"class": "InternalServerError", "status": 504, "code": "upstream_timeout"}),
        ("not_ready", {"class": "InternalServerError", "status": 503, "retry_after": "3"}),
        ("too_large", {"status": 413, "code": "request_too_large"}),
        ("dimensions", {"class": "BadRequestError", "status": 400, "param": "dimensions"}),
    ],
)
def test_errors_have_their_classes(conversation: Conversation, what: str, expected: dict[str, Any]) -> None:
    error = conversation.facts["errors"][what]
    assert {name: error[name] for name in expected} == expected
    assert error["request_id"].startswith("req_")
    assert error["message"]


def test_a_stream_that_is_cut_raises_an_api_error_with_its_code(conversation: Conversation) -> None:
    error = conversation.facts["errors"]["cut"]
    assert error["class"] == "APIError"
    assert (error["code"], error["type"]) == ("stream_interrupted", "upstream_error")
    assert conversation.facts["errors"]["fine"] == "stop"


def test_headers_tell_of_limits_and_of_the_way(conversation: Conversation) -> None:
    told = conversation.facts["limits"]
    headers = told["headers"]
    assert told["finish"] == "stop"
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] in ("1m0s", "60s", "59s", "58s")
    assert headers["x-citadel-server"] == conversation.served["trouble"].server_id
    assert headers["x-citadel-attempts"] == "1"
    assert headers["x-citadel-cache"] == "bypass"
    assert int(headers["openai-processing-ms"]) >= 0
    assert headers["x-request-id"].startswith("req_")


def test_a_limit_raises_a_rate_limit_error_that_says_when_to_come_back(conversation: Conversation) -> None:
    refused = conversation.facts["limits"]["refused"]
    assert refused["class"] == "RateLimitError"
    assert refused["code"] == "rate_limit_exceeded"
    assert 50 <= int(refused["retry_after"]) <= 60


@pytest.mark.parametrize("where", ["plain", "silence", "stream"])
def test_a_client_that_leaves_frees_the_server_within_a_second(conversation: Conversation, where: str) -> None:
    left = conversation.facts["leaving"][where]
    [seen] = conversation.requests(where)
    assert seen.ended == "client_closed"
    assert seen.ended_at is not None
    assert seen.ended_at - left["at"] < SECONDS_TO_NOTICE
    if where == "stream":
        assert left["text"]
    else:
        assert left["class"] in ("APITimeoutError", "APIConnectionTimeoutError")


@pytest.mark.parametrize("what", ["busy once", "not ready once"])
def test_the_package_comes_back_when_it_was_told_to(conversation: Conversation, what: str) -> None:
    assert conversation.facts["retries"][what] == "stop"
    first, second = conversation.requests(what)
    assert second.begun_at - first.begun_at >= 1.0
