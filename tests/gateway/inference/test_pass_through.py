"""What Citadel does not know travels untouched, both ways, byte for byte; what is a client's own does not travel."""

import http.client
import json
from collections.abc import Callable

import pytest

from tests.fleet.control import Fleet
from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client, chat, streamed
from tests.instance import Instance

Start = Callable[..., Fleet]

# Written as no encoder would: spaces, escapes, numbers in unusual forms, a field twice, fields nobody knows.
ODD = {
    CHAT: r'{ "messages":[{"role":"user","content":"\u0048ello \ud83d\ude00 ☃","x":1.50}],'
    r'"model" : "MODEL","x_echo":true,"min_p":1.0e-1,"big":123456789012345678901234567890,'
    r'"deep":{"a":[[[]]],"b":null}, "again":1,"again":2,"max_tokens":4 }',
    COMPLETIONS: r'{"prompt":"\u0048i","model":"MODEL","x_echo":true,"min_p":1E0,'
    r'"deep":{"b":{},"a":-0},"max_tokens":4}',
    EMBEDDINGS: r'{"input":["\u0048i"],"model":"MODEL","x_echo":true,"truncate":"END","min_p":1E0}',
}


def said_by(server: Fleet, path: str, body: str) -> bytes:
    """The server's own answer to that body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", path, body.encode(), {"content-type": "application/json"})
    answer = connection.getresponse().read()
    connection.close()
    return answer


@pytest.mark.parametrize("path", ODD)
async def test_a_whole_exchange_is_the_same_bytes_on_both_sides(
    fleet: Start, model: str, client: Client, path: str
) -> None:
    server, body = fleet(model), ODD[path].replace("MODEL", model)
    answer = await client.post(body.encode(), path)
    assert answer.status == 200
    [seen] = server.log()
    assert seen.body == body
    assert answer.body == said_by(server, path, body)
    assert b'"x_echo":{' in answer.body


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp", "ollama"])
async def test_a_stream_keeps_each_field_and_comes_back_byte_for_byte(
    fleet: Start, model: str, client: Client, path: str, kind: str
) -> None:
    server = fleet(model, kind=kind)
    body = (
        ODD[path].replace("MODEL", model).rstrip("} ") + ',"stream":true,"stream_options":{"include_usage":true,"x":1}}'
    )
    answer = await client.post(body.encode(), path)
    [seen] = server.log()
    for field in ('"min_p":1', r"\u0048", '"deep":{'):
        assert seen.body[(place := seen.body.index(field)) : place + 12] in body
    assert json.loads(seen.body) == json.loads(body)
    assert answer.body == said_by(server, path, seen.body)


async def test_a_stream_that_did_not_ask_for_usage_differs_in_that_alone(
    fleet: Start, model: str, client: Client
) -> None:
    server = fleet(model, kind="vllm")
    answer = await client.post(streamed(model, x_unknown=[1]))
    [seen] = server.log()
    assert seen.json() == streamed(model, x_unknown=[1], stream_options={"include_usage": True})
    events = said_by(server, CHAT, seen.body).split(b"\n\n")
    [of_usage] = [event for event in events if b'"choices":[]' in event]
    assert answer.body == b"\n\n".join(event for event in events if event != of_usage)


async def test_an_alias_is_resolved_and_nothing_else_is_touched(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.models import Alias

    server, alias = fleet(model), Alias.objects.create(name=f"alias-{model}", model=model)
    try:
        citadel.settle()
        body = ODD[CHAT].replace("MODEL", alias.name)
        answer = await client.post(body.encode())
        [seen] = server.log()
        assert seen.json() == {**json.loads(body), "model": model}
        assert '"big":123456789012345678901234567890' in seen.body
        assert '"min_p":1.0e-1' in seen.body
        assert answer.body == said_by(server, CHAT, seen.body)
    finally:
        alias.delete()


async def test_fields_of_chunks_and_answers_that_nobody_knows_arrive(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    server.behave("unknown_fields x_new")
    assert "x_new" in (await client.post(chat(model))).json()
    assert all("x_new" in chunk for chunk in (await client.post(streamed(model))).chunks)


async def test_the_server_gets_its_own_key_and_none_of_the_clients_headers(
    citadel: Instance, fleet: Start, model: str, client: Client
) -> None:
    from apps.orchestration.models import Server

    server = fleet(model)
    sent = {"x_custom": "mine", "cookie": "a=b", "x_api_key": "nobodys", "accept_language": "de", "user_agent": "me/1"}
    await client.post(chat(model), **sent)
    Server.objects.filter(server_id=server.server_id).update(api_key="its-own")
    citadel.settle()
    await client.post(chat(model), **sent)
    before, after = server.log()
    assert "authorization" not in before.headers
    assert after.headers["authorization"] == "Bearer its-own"
    for seen in (before, after):
        assert seen.headers["content-type"] == "application/json"
        assert not {"cookie", "x-custom", "x-api-key", "accept-language", "user-agent"} & set(seen.headers)


async def test_headers_of_a_server_stay_inside(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    server.behave("huge_headers 5000")
    for body in (chat(model), streamed(model)):
        answer = await client.post(body)
        assert answer.status == 200
        assert sum(len(name) + len(value) for name, value in answer.headers.items()) < 1000


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((path, name) for path in ODD for name in ("Model", "MODEL", "\\u004dodel")),
        *((path, name) for path in (CHAT, COMPLETIONS) for name in ("Stream", "\u017ftream")),
        (EMBEDDINGS, "Input"),
    ],
)
async def test_a_name_that_a_server_may_read_as_another_is_refused(
    fleet: Start, model: str, client: Client, path: str, name: str
) -> None:
    """Ollama takes `Model` for `model`: a key would get at models that it may not use."""
    server = fleet(model)
    body = ODD[path].replace("MODEL", model)[:-1] + f', "{name}": "another"}}'
    answer = await client.post(body.encode(), path)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "unknown_parameter")
    assert error["param"] == json.loads(f'"{name}"')
    assert not server.calls()
