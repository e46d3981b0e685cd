"""The chat server from the outside: a real model behind llama.cpp's HTTP server."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from tests.embedded_models.conftest import ModelServer, running
from tests.held_up import HELD_UP

MODULE = "citadel.embedded.chat_server"
LONG = {"messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 1800, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with running(MODULE) as server:
        server.wait_until_healthy()
        yield server


def chat(server: ModelServer, **fields: Any) -> Any:
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": "What is water made of?"}]}
    answer = server.client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 32, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(server: ModelServer, body: dict[str, Any]) -> AbstractContextManager[httpx.Response]:
    # On a connection of its own: llama.cpp closes it after a stream, though it says keep-alive.
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    return httpx.stream("POST", url, json={**body, "stream": True}, timeout=30)


def events(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def busy_slots(server: ModelServer) -> int:
    return sum(slot["is_processing"] for slot in server.client.get("/slots").json())


def test_health_models_and_metrics(server: ModelServer) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "smollm2:135m"
    assert model["meta"]["n_ctx"] == 2048
    assert "llamacpp:requests_processing" in server.client.get("/metrics").text
    assert len(server.client.get("/slots").json()) == 4


def test_the_model_answers_with_sense(server: ModelServer) -> None:
    answer = chat(server)
    assert "oxygen" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_stream_with_usage(server: ModelServer) -> None:
    # At its coldest: an answer that begins with a character of several tokens has no role.
    body = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    with stream(server, body) as answer:
        *chunks, done = events(answer.iter_lines())
    assert done == "[DONE]"
    first, *_, finish, usage = map(json.loads, chunks)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert finish["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == []
    assert 1 <= usage["usage"]["completion_tokens"] <= 8


def test_tools_are_accepted(server: ModelServer) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    assert chat(server, tools=[tool], tool_choice="auto")["choices"][0]["message"]["role"] == "assistant"


def test_json_schema_is_honoured(server: ModelServer) -> None:
    properties = {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 1, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    answer = chat(
        server, max_tokens=80, response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    )
    person = json.loads(answer["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}
    assert 1 <= person["age"] <= 99


def test_a_prompt_over_the_context_is_refused(server: ModelServer) -> None:
    messages = [{"role": "user", "content": "word " * 3000}]
    answer = server.client.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "exceed_context_size_error"


def test_requests_run_side_by_side(server: ModelServer) -> None:
    with stream(server, LONG) as long:
        lines = long.iter_lines()
        next(lines)
        assert chat(server, max_tokens=4)["usage"]["completion_tokens"] == 4
        assert busy_slots(server) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: ModelServer, streamed: bool) -> None:
    # A plain request's departure is noticed after a second in which the server had nothing else to tell: no polling.
    assert _until_free(server, 0.05) < 3
    body = json.dumps({**LONG, "stream": streamed}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.5)
        assert busy_slots(server) == 1
    assert _until_free(server, 0.05 if streamed else 1.5) < 4


def _until_free(server: ModelServer, interval: float) -> float:
    started = time.monotonic()
    while busy_slots(server) and time.monotonic() < started + 10:
        time.sleep(interval)
    return time.monotonic() - started


def test_idle_connections_keep_nobody_out(server: ModelServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    started = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{server.port}/health").status_code == 200
    assert time.monotonic() - started < 1 + HELD_UP
    for connection in idle:
        connection.close()


def test_it_says_503_while_it_loads_and_is_ready_soon() -> None:
    with running(MODULE, "--parallel", "1") as server:
        started = time.monotonic()
        assert server.wait_until_healthy() <= {200, 503}
        assert time.monotonic() - started < 10
        assert len(server.client.get("/slots").json()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_at_once_even_with_an_open_stream(number: signal.Signals) -> None:
    with running(MODULE, "--parallel", "1") as server:
        server.wait_until_healthy()
        with stream(server, LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            started = time.monotonic()
            server.process.send_signal(number)
            assert server.process.wait(10) == 0
            assert time.monotonic() - started < 2 + HELD_UP
            with pytest.raises(httpx.RemoteProtocolError):  # cut, not ended: nobody takes it for a whole answer
                list(lines)


def test_a_taken_port_is_said_and_ends_it(server: ModelServer) -> None:
    second = subprocess.run(
        [sys.executable, "-m", MODULE, "--port", str(server.port)],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert f"port {server.port}" in second.stderr


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "nowhere"], ["--parallel", "0"]])
def test_what_it_refuses_on_the_command_line(arguments: list[str]) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", MODULE, "--port", "1", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert refused.returncode == 2
    assert arguments[1] in refused.stderr
