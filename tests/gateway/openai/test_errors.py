"""What a client is told when there is no answer: by whose fault, on which way, and nothing of the insides."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import EMBEDDINGS, Client, chat

Start = Callable[..., Fleet]


async def test_a_servers_words_are_told_without_its_insides(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    leak = {
        "message": "bad: gpu-7.corp:8000 refused key sk-abc123def456ghi789, see models/x.gguf",
        "param": "http://10.0.0.3/",
        "code": "/srv/x",
    }
    server.behave({"error": {"status": 400, "body": json.dumps({"error": leak})}})
    reply = await client.post(chat(model))
    told = {"message": "bad: … refused key …, see …", "param": None, "code": "invalid_value"}
    assert (reply.status, reply.json()["error"]) == (400, {**told, "type": "invalid_request_error"})


@pytest.mark.parametrize("kind", ["openai", "llamacpp", "vllm", "ollama"])
async def test_too_much_for_the_context_has_openais_code(fleet: Start, model: str, client: Client, kind: str) -> None:
    fleet(model, kind=kind).behave("error 400 context")
    for body in (chat(model), chat(model, stream=True)):
        reply = await client.post(body)
        assert (reply.status, reply.code) == (400, "context_length_exceeded")


async def test_the_demo_servers_say_which_field_is_wrong_and_what_is_too_long(client: Client) -> None:
    wrong = await client.post(chat("smollm2:135m", mirostat="x"))
    assert (wrong.status, wrong.json()["error"]["param"]) == (400, "mirostat")
    long = await client.post(chat("smollm2:135m", "a " * 20_000))
    assert (long.status, long.code) == (400, "context_length_exceeded")
    body: dict[str, Any] = {"model": "all-minilm", "input": "Hello", "encoding_format": None}
    assert (await client.post(body, EMBEDDINGS)).status == 200
