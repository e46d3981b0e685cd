"""What a client is told when there is no answer: by whose fault, on which way, and nothing of the insides."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import EMBEDDINGS, Client, chat
from tests.instance import Instance

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


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        ("error 500", 502),
        ("error 503", 503),
        ("error 504", 504),
        ("error 404", 404),
        ("error 429", 429),
        ("error 400", 400),
    ],
)
async def test_an_error_tells_the_requests_way(
    fleet: Start, model: str, client: Client, behaviour: str, status: int
) -> None:
    server = fleet(model)
    server.behave(behaviour)
    for body in (chat(model), chat(model, stream=True), chat(model, temperature=0)):
        reply = await client.post(body)
        assert reply.status == status
        assert reply.headers["x-citadel-server"] == server.server_id
        assert reply.headers["x-citadel-attempts"] == "1"
        assert reply.cache == ("miss" if "temperature" in body else "bypass")
        assert int(reply.headers["openai-processing-ms"]) >= 0
        assert ("retry-after" in reply.headers) is (status in (429, 503))
        assert len(reply.headers) == len(set(reply.headers)), "none of them twice"


async def test_where_no_server_is_left_that_is_told_too(fleet: Start, model: str, client: Client) -> None:
    fleet(model).kill()
    await client.post(chat(model))
    reply = await client.post(chat(model))
    assert (reply.status, reply.code) == (503, "no_server_available")
    assert f"'{model}'" in reply.json()["error"]["message"]
    assert {"x-citadel-attempts", "x-citadel-cache", "openai-processing-ms", "retry-after"} <= {
        name.lower() for name in reply.headers
    }


async def test_a_wrong_name_hears_of_the_nearest_that_the_key_may_use(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    fleet(model)
    near = citadel.key(models=[model])
    far = citadel.key(models=["another"])
    for key, told in ((near, True), (far, False)):
        for reply in (await client.post(chat(f"{model}x"), key=key), await client.get(f"/v1/models/{model}x", key=key)):
            error = reply.json()["error"]
            assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert f"'{model}x'" in error["message"]
            assert (f"'{model}'" in error["message"]) is told
            assert "GET /v1/models" in error["message"]
    long = await client.get("/v1/models/" + "x" * 2000)
    assert len(long.json()["error"]["message"]) < 400
