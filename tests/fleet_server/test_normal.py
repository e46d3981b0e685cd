"""A server that behaves: what each endpoint and each kind answers."""

import base64
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.control import Fleet

from .client import CHAT, ask, chat, connect, request_bytes, stream

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


@pytest.fixture(scope="module", params=["llamacpp", "ollama", "vllm"])
def of_kind(request: pytest.FixtureRequest) -> Iterator[tuple[str, Fleet]]:
    with Fleet.start(kind=request.param, models=["tiny"], tokens=4) as server:
        yield request.param, server


def test_equal_requests_get_equal_answers_and_others_do_not(server: Fleet) -> None:
    first, again, other = (ask(server, body=chat(say)).json() for say in ("a", "a", "b"))
    assert first == again
    assert first["choices"][0]["message"]["content"] != other["choices"][0]["message"]["content"]
    assert first["usage"] == {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
    assert ask(server, body=chat("a", seed=1)).json()["choices"] != first["choices"]


def test_a_stream_says_what_the_whole_answer_says(server: Fleet) -> None:
    whole = ask(server, body=chat()).json()["choices"][0]["message"]["content"]
    events = stream(server).events()
    assert "".join(stream(server).content()) == whole
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"
    assert len(stream(server).content()) == 8


def test_usage_comes_in_a_stream_when_asked_for(server: Fleet) -> None:
    assert "usage" not in str(stream(server).events())
    events = stream(server, stream_options={"include_usage": True}).events()
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 8
    assert all(event["usage"] is None for event in events[:-2])


def test_max_tokens_stop_and_n(server: Fleet) -> None:
    short = ask(server, body=chat(max_tokens=3)).json()["choices"][0]
    assert short["finish_reason"] == "length"
    assert len(stream(server, max_completion_tokens=3).content()) == 3
    words = ask(server, body=chat()).json()["choices"][0]["message"]["content"].split()
    stopped = ask(server, body=chat(stop=[f" {words[4]}"])).json()["choices"][0]
    assert stopped["message"]["content"].split() == words[:4]
    choices = ask(server, body=chat(n=3)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3
    indexes = [event["choices"][0]["index"] for event in stream(server, n=2).events()[:-1]]
    assert indexes == [0, 1] * 10


def test_tools_are_called_with_arguments_that_suit_their_schema(server: Fleet) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
    choice = ask(server, body=chat(**fields)).json()["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "naïve example", "days": 7, "unit": "C"}
    deltas = [event["choices"][0]["delta"] for event in stream(server, **fields).events()[:-1]]
    pieces = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert pieces[0]["id"] == call["id"]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
    assert "content" in ask(server, body=chat(tools=TOOLS, tool_choice="none")).json()["choices"][0]["message"]


def test_json_schema_logprobs_and_echo_of_unknown_fields(server: Fleet) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    text = ask(server, body=chat(response_format=form)).json()["choices"][0]["message"]["content"]
    assert json.loads(text)["days"] == 7
    logprobs = ask(server, body=chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]
    assert len(logprobs["content"]) == 8
    assert len(logprobs["content"][0]["top_logprobs"]) == 2
    asked = chat(x_echo=True, x_strange={"deep": [1, 2.5, None, "ü"]})
    assert ask(server, body=asked).json()["x_echo"] == asked
    assert stream(server, x_echo=True, x_new=1).events()[0]["x_echo"]["x_new"] == 1


def test_completions(server: Fleet) -> None:
    path = "/v1/completions"
    whole = ask(server, path, {"model": "tiny", "prompt": ["one", "two words"], "echo": True, "logprobs": 1}).json()
    assert [choice["text"].startswith(p) for choice, p in zip(whole["choices"], ["one", "two words"], strict=True)]
    assert whole["usage"]["prompt_tokens"] == 3
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == 9
    tokens = ask(server, path, {"model": "tiny", "prompt": [1, 2, 3]}).json()
    assert (len(tokens["choices"]), tokens["usage"]["prompt_tokens"]) == (1, 3)
    events = ask(server, path, {"model": "tiny", "prompt": "one", "stream": True}).events()
    text = ask(server, path, {"model": "tiny", "prompt": "one"}).json()["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text


def test_embeddings_are_unit_vectors_by_their_input(server: Fleet) -> None:
    path = "/v1/embeddings"
    answer = ask(server, path, {"model": "tiny", "input": ["a b", "c", "a b"]}).json()
    vectors = [entry["embedding"] for entry in answer["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert math.isclose(math.fsum(x * x for x in vectors[0]), 1.0)
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    coded = ask(server, path, {"model": "tiny", "input": "c", "encoding_format": "base64"}).json()["data"][0]
    floats = struct.unpack("<384f", base64.b64decode(coded["embedding"]))
    assert floats == pytest.approx(vectors[1], abs=1e-6)
    assert (
        len(ask(server, path, {"model": "tiny", "input": "c", "dimensions": 64}).json()["data"][0]["embedding"]) == 64
    )
    assert len(ask(server, path, {"model": "tiny", "input": [[1, 2], [3]]}).json()["data"]) == 2
    assert len(ask(server, path, {"model": "tiny", "input": [1, 2]}).json()["data"]) == 1


def test_models_and_refusals(server: Fleet) -> None:
    assert [model["id"] for model in ask(server, "/v1/models").json()["data"]] == ["tiny", "other"]
    assert ask(server, "/v1/models/other").json()["id"] == "other"
    unknown = ask(server, body={**chat(), "model": "none"})
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(server, "/nowhere").status == 404
    long = ask(server, body=chat("word " * 9000))
    assert (long.status, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert ask(server, body=["no object"]).status == 400


def test_each_kind_has_its_own_pages_errors_and_chunks(of_kind: tuple[str, Fleet]) -> None:
    kind, server = of_kind
    pages = {
        "llamacpp": ["/health", "/props", "/slots", "/metrics"],
        "ollama": ["/api/tags", "/api/ps", "/api/version", "/"],
        "vllm": ["/health", "/version", "/metrics"],
    }
    assert [ask(server, page).status for page in pages[kind]] == [200] * len(pages[kind])
    assert ask(server, "/v1/models").json()["data"][0]["id"] == "tiny"
    server.behave("error 400 context", next=1)
    error = ask(server, body=chat()).json()["error"]
    assert (
        error["type"]
        == {
            "llamacpp": "exceed_context_size_error",
            "ollama": "invalid_request_error",
            "vllm": "BadRequestError",
        }[kind]
    )
    first, *_, done = stream(server).events()
    assert (
        first["choices"][0]["delta"]
        == {
            "llamacpp": {"role": "assistant", "content": None},
            "ollama": {"role": "assistant", "content": stream(server).content()[0]},
            "vllm": {"role": "assistant", "content": ""},
        }[kind]
    )
    assert done == "[DONE]"
    if kind != "llamacpp":  # which never looks at the name
        assert ask(server, body={**chat(), "model": "none"}).status == 404


def test_ollama_loads_unloads_and_speaks_its_native_tongue() -> None:
    with Fleet.start(kind="ollama", models=["tiny", "nomic-embed-text"], tokens=3, load_seconds=0.2) as server:
        assert ask(server, "/api/ps").json()["models"] == []
        loaded = ask(server, "/api/generate", {"model": "tiny"}).json()
        assert loaded["done_reason"] == "load"
        assert [model["name"] for model in ask(server, "/api/ps").json()["models"]] == ["tiny:latest"]
        [entry] = server.log()[1:2]
        assert entry.first_byte_at is not None
        assert entry.first_byte_at - entry.begun_at >= 0.2
        lines = ask(server, "/api/chat", chat()).body.decode().splitlines()
        assert [json.loads(line)["done"] for line in lines] == [False, False, False, True]
        assert "message" in ask(server, "/api/chat", chat(stream=False)).json()
        vectors = ask(server, "/api/embed", {"model": "nomic-embed-text", "input": ["a", "b"]}).json()["embeddings"]
        assert [len(vector) for vector in vectors] == [384, 384]
        assert ask(server, "/api/show", {"model": "nomic-embed-text"}).json()["capabilities"] == ["embedding"]
        ask(server, "/api/generate", {"model": "tiny", "keep_alive": 0})
        assert [model["name"] for model in ask(server, "/api/ps").json()["models"]] == ["nomic-embed-text:latest"]
        assert isinstance(ask(server, "/api/chat", {**chat(), "model": "none"}).json()["error"], str)


def test_key_abilities_and_parallel_limit() -> None:
    options = {"kind": "llamacpp", "api_key": "secret", "only": "chat", "parallel": 1, "tokens": 2}
    with Fleet.start(**options) as server:  # type: ignore[arg-type]
        assert ask(server, body=chat()).status == 401
        key = "authorization: Bearer secret\r\n"
        assert ask(server, "/v1/embeddings", {"input": "x"}, headers=key).status == 501
        server.behave("slow_start 200")
        with connect(server) as one, connect(server) as two:
            for connection in (one, two):
                connection.sendall(request_bytes(CHAT, chat(), headers=key))
            assert one.recv(10)
            assert two.recv(10)
        first, second = server.log()[-2:]
        assert first.first_byte_at is not None
        assert second.first_byte_at is not None
        assert second.first_byte_at - first.first_byte_at >= 0.19


def test_keep_alive_pipelining_chunked_bodies_and_expect_continue(server: Fleet) -> None:
    body = json.dumps(chat()).encode()
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"".join(b"%x\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, chat(stream=True), close=False) + chunked + request_bytes("/v1/models"))
        data = b""
        while part := connection.recv(65536):
            data += part
    assert data.count(b"HTTP/1.1 200 OK") == 3
    assert [entry.path for entry in server.log()] == [CHAT, CHAT, "/v1/models"]
    assert server.log()[1].json() == chat()
    with connect(server) as connection:
        head, _, rest = request_bytes(CHAT, chat(), headers="expect: 100-continue\r\n").partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(rest)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    with connect(server) as connection:
        connection.sendall(b"NOT HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
