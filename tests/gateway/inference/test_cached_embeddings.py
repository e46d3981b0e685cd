"""Embeddings are kept one an input: a batch pays for what is new alone."""

import base64
import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from apps.gateway.inference import doors
from apps.gateway.inference.caching.embeddings import EmbeddingBatch
from apps.gateway.inference.http.failures import Failure
from apps.gateway.openai.schemas import EmbeddingRequest
from tests.fleet.control import Fleet
from tests.gateway.client import EMBEDDINGS, Client, Reply

Start = Callable[..., Fleet]
INPUTS: list[Any] = ["one", "two", [1, 2, 3], "three"]


def asked(server: Fleet) -> list[Any]:
    """The inputs of each request that the server has seen."""
    return [json.loads(entry.body)["input"] for entry in server.log()]


def vectors(reply: Reply) -> list[Any]:
    rows = reply.json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert {row["object"] for row in rows} == {"embedding"}
    return [row["embedding"] for row in rows]


async def test_only_what_is_new_is_asked_for(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)

    async def embed(*inputs: Any) -> Reply:
        return await client.post({"model": model, "input": list(inputs)}, EMBEDDINGS)

    first = await embed("one", "two")
    second = await embed("three", "two", "one", "four")
    third = await embed("four", "one")
    assert [reply.cache for reply in (first, second, third)] == ["miss", "miss", "hit"]
    assert asked(server) == [["one", "two"], ["three", "four"]]
    known = {
        **dict(zip(("one", "two"), vectors(first), strict=True)),
        **dict(zip(("three", "two", "one", "four"), vectors(second), strict=True)),
    }
    assert vectors(second)[1:3] == vectors(first)[::-1]
    assert vectors(third) == [known["four"], known["one"]]
    assert third.json()["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert second.json()["usage"]["prompt_tokens"] > 0
    assert {reply.json()["model"] for reply in (first, second, third)} == {model}


@pytest.mark.parametrize(
    "vector",
    ['[1,"a",null]', "[[1]]", "[1,[2]]", "[]", "[ ]", "[true]", "{}", '""', "null", "7", '"!!!!"'],
)
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_what_is_no_vector_is_neither_passed_on_nor_kept(
    fleet: Start, model: str, client: Client, vector: str, encoding: str
) -> None:
    server = fleet(model)
    server.behave({"json_is": {"value": f'{{"object":"list","data":[{{"index":0,"embedding":{vector}}}]}}'}}, next=1)
    body = {"model": model, "input": "one", "encoding_format": encoding}
    bad = await client.post(body, EMBEDDINGS)
    assert (bad.status, bad.json()["error"]["type"]) == (502, "upstream_error")
    assert (await client.post(body, EMBEDDINGS)).cache == "miss"
    assert (await client.post(body, EMBEDDINGS)).cache == "hit"


@pytest.mark.parametrize("vector", ["[1]", "[ -1.5e-7,\n2E+3 ]", "[0.25,1]"])
async def test_numbers_pass_as_the_server_has_written_them(
    fleet: Start, model: str, client: Client, vector: str
) -> None:
    answer = f'{{"object":"list","data":[{{"index":0,"embedding":{vector}}}]}}'
    fleet(model).behave({"json_is": {"value": answer}})
    made = await client.post({"model": model, "input": "one"}, EMBEDDINGS)
    assert (made.status, made.body.decode()) == (200, answer)


@pytest.mark.parametrize("given", INPUTS)
async def test_one_input_and_a_batch_of_it_are_one(fleet: Start, model: str, client: Client, given: Any) -> None:
    server = fleet(model)
    alone = await client.post({"model": model, "input": given}, EMBEDDINGS)
    batch = await client.post({"model": model, "input": [given]}, EMBEDDINGS)
    assert (alone.cache, batch.cache) == ("miss", "hit")
    assert vectors(alone) == vectors(batch)
    assert len(server.calls()) == 1


async def test_texts_and_tokens_are_told_apart(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    for given in ("[1,2]", [1, 2], ["1", "2"], [[1], [2]], [12]):
        assert (await client.post({"model": model, "input": given}, EMBEDDINGS)).cache == "miss"
    assert len(server.calls()) == 5


@pytest.mark.parametrize("more", [{"dimensions": 8}, {"encoding_format": "base64"}, {"unknown": 1}])
async def test_other_options_are_other_entries(fleet: Start, model: str, client: Client, more: dict[str, Any]) -> None:
    fleet(model)
    body = {"model": model, "input": "one"}
    for request in (body, {**body, **more}):
        assert (await client.post(request, EMBEDDINGS)).cache == "miss"
        assert (await client.post(request, EMBEDDINGS)).cache == "hit"


async def test_base64_is_the_same_vector_kept_and_new(fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    floats = vectors(await client.post({"model": model, "input": ["one", "two"]}, EMBEDDINGS))
    for inputs in (["one"], ["one", "two"], ["two", "one"]):
        body = {"model": model, "input": inputs, "encoding_format": "base64"}
        for text, vector in zip(inputs, vectors(await client.post(body, EMBEDDINGS)), strict=True):
            unpacked = array("f", base64.b64decode(vector)).tolist()
            assert unpacked == pytest.approx(floats[["one", "two"].index(text)], abs=1e-6)


async def test_a_batch_with_the_same_input_twice_has_two_vectors(fleet: Start, model: str, client: Client) -> None:
    fleet(model)
    body = {"model": model, "input": ["one", "one", "two"]}
    for cache in ("miss", "hit"):
        reply = await client.post(body, EMBEDDINGS)
        assert reply.cache == cache
        first, second, third = vectors(reply)
        assert first == second != third


async def test_no_store_and_no_cache_are_honoured(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model)
    body = {"model": model, "input": ["one"]}
    for control, cache in (
        ("no-store", "bypass"),
        ("", "miss"),
        ("no-store", "bypass"),
        ("no-cache", "miss"),
        ("", "hit"),
    ):
        assert (await client.post(body, EMBEDDINGS, cache_control=control)).cache == cache
    assert len(server.calls()) == 4


NOT_KEPT = [{"cache_control": "no-store"}, {"x_citadel_cache": "bypass"}]


@pytest.mark.parametrize("headers", NOT_KEPT)
@pytest.mark.parametrize(
    "rows",
    [
        '{"index":0,"embedding":[1]}',
        '{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}',
        '{"index":0,"embedding":[1]},{"index":1,"embedding":null}',
        '{"index":0,"embedding":[1,2]},{"index":1,"embedding":[3]}',
    ],
)
async def test_what_is_not_kept_is_looked_at_all_the_same(
    fleet: Start, model: str, client: Client, headers: dict[str, str], rows: str
) -> None:
    fleet(model).behave({"json_is": {"value": f'{{"object":"list","data":[{rows}]}}'}})
    reply = await client.post({"model": model, "input": ["one", "two"]}, EMBEDDINGS, **headers)
    assert (reply.status, reply.json()["error"]["type"]) == (502, "upstream_error")


@pytest.mark.parametrize("headers", [{}, *NOT_KEPT])
async def test_a_server_that_knows_only_floats_answers_in_base64(
    fleet: Start, model: str, client: Client, headers: dict[str, str]
) -> None:
    fleet(model).behave({"json_is": {"value": '{"object":"list","data":[{"index":0,"embedding":[1.0,2.0]}]}'}})
    body = {"model": model, "input": "one", "encoding_format": "base64"}
    [vector] = vectors(await client.post(body, EMBEDDINGS, **headers))
    assert array("f", base64.b64decode(vector)).tolist() == [1.0, 2.0]


async def test_a_large_batch_keeps_each_of_its_inputs(fleet: Start, model: str, client: Client) -> None:
    server = fleet(model, dimensions=4)
    texts = [f"text {number}" for number in range(2048)]
    whole = await client.post({"model": model, "input": texts}, EMBEDDINGS)
    assert len(vectors(whole)) == 2048
    half = await client.post({"model": model, "input": texts[::2]}, EMBEDDINGS)
    assert half.cache == "hit"
    assert vectors(half) == vectors(whole)[::2]
    assert len(server.calls()) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [(0, [1.0]), (0, [2.0])],
        [(1, [1.0]), (2, [2.0])],
        [(0, [1.0])],
        [(0, None), (1, [2.0])],
        [(0, {}), (1, [2.0])],
        [(0, [1.0, 2.0]), (1, [3.0])],
    ],
)
async def test_an_answer_that_does_not_fit_the_question_is_none(rows: list[tuple[int, Any]]) -> None:
    """What it said would be kept for a day, under the wrong input."""
    body = json.dumps({"model": "m", "input": ["one", "two"]}).encode()
    request = EmbeddingRequest(model="m", input=["one", "two"])
    batch = await EmbeddingBatch.read("team", "m", doors.EMBEDDINGS, body, request)
    answer = {"data": [{"index": index, "embedding": vector} for index, vector in rows]}
    with pytest.raises(Failure, match="malformed"):
        batch.merge(json.dumps(answer).encode())


FLOATS = '{"object":"list","data":[{"index":0,"embedding":[1,2,3]}]}'
BASE64 = '{"object":"list","data":[{"index":0,"embedding":"AACAPwAAAEAAAEBA"}]}'
ESCAPED = BASE64.replace("AACAPwAA", "AACAPwA\\u0041")


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("answer", [FLOATS, BASE64, ESCAPED])
async def test_vectors_have_as_many_dimensions_as_were_asked_for(
    fleet: Start, model: str, client: Client, encoding: str, answer: str
) -> None:
    """A server that doesn't know `dimensions` gives whole vectors, which would be kept for a day."""
    server = fleet(model)
    server.behave({"json_is": {"value": answer}})
    body = {"model": model, "input": "one", "encoding_format": encoding}
    refused = await client.post({**body, "dimensions": 2}, EMBEDDINGS)
    assert (refused.status, refused.code) == (400, "unsupported_by_model")
    assert refused.json()["error"]["param"] == "dimensions"
    assert (await client.post({**body, "dimensions": 3}, EMBEDDINGS)).status == 200
    assert len(server.calls()) == 2, "asked again for what it doesn't know"
