"""Each kind of server is asked in its own way for its models; whatever else answers is told apart from an answer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.orchestration.dialects import DIALECTS, FoundModel
from apps.orchestration.dialects.llamacpp import blames_request
from apps.orchestration.discovery import DiscoveryFailed, discover
from tests.fleet.backend.config import Kind
from tests.fleet.control import Fleet

NAMES = ["tiny", "org/big:7b"]
KINDS: tuple[Kind, ...] = ("openai", "vllm", "llamacpp", "ollama")


@pytest.fixture(scope="module")
def server() -> Iterator[Fleet]:
    with Fleet.start(models=NAMES) as server:
        yield server


@pytest.mark.parametrize(
    ("kind", "path", "length", "owner"),
    [
        ("openai", "/v1/models", None, "system"),
        ("vllm", "/v1/models", 4096, "vllm"),
        ("llamacpp", "/v1/models", 4096, "llamacpp"),
        ("ollama", "/api/tags", None, "ollama"),
    ],
)
def test_models_of_each_kind(kind: Kind, path: str, length: int | None, owner: str) -> None:
    with Fleet.start(kind=kind, models=NAMES, context_length=4096, api_key="secret") as server:
        assert discover(server.url, kind, "secret") == [FoundModel(name, length, owner) for name in NAMES]
        [seen] = server.log()
        assert (seen.method, seen.path) == ("GET", path)
        with pytest.raises(DiscoveryFailed, match="answered 401"):
            discover(server.url, kind, "wrong")


def test_a_citadel_tells_the_context_length_in_its_own_way() -> None:
    row = {"id": "m", "object": "model", "owned_by": "x", "citadel": {"servers": ["s"], "context_length": 2048}}
    assert DIALECTS["openai"].read_models({"data": [row]}) == [FoundModel("m", 2048, "x")]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("error 500", "answered 500"),
        ("html", "did not answer with JSON"),
        ("empty", "did not answer with JSON"),
        ("not_json", "did not answer with JSON"),
        ("die request rst", "can't be asked"),
        ("wrong_length 10", "can't be asked"),
        ({"json_is": {"value": "[]"}}, "list of models"),
        ({"json_is": {"value": '{"data": 7}'}}, "list of models"),
        ({"json_is": {"value": '{"data": [{"id": "m", "max_model_len": "long"}]}'}}, "list of models"),
        ("huge_body 9000000", "more than"),
    ],
)
def test_what_is_no_answer_is_told(server: Fleet, behaviour: str | dict[str, Any], reason: str) -> None:
    server.behave()
    server.behave(behaviour, path="/v1/models")
    with pytest.raises(DiscoveryFailed, match=reason) as failed:
        discover(server.url, "openai")
    assert server.url in str(failed.value)


def test_a_server_that_is_not_there_is_told(server: Fleet) -> None:
    server.behave()
    server.behave("refuse")
    with pytest.raises(DiscoveryFailed, match="can't be asked"):
        discover(server.url, "openai")
    server.behave()


fields = st.sampled_from(
    ["data", "models", "id", "name", "max_model_len", "meta", "citadel", "n_ctx_train", "owned_by", "x"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), payload=st.dictionaries(fields, anything, max_size=3))
def test_any_json_is_a_list_of_models_or_no_answer(server: Fleet, kind: Kind, payload: dict[str, Any]) -> None:
    server.behave()
    path = DIALECTS[kind].models_path
    server.behave({"json_is": {"value": json.dumps(payload)}}, path="/*")
    try:
        found = discover(server.url, kind)
    except DiscoveryFailed as failed:
        assert path in str(failed)
    else:
        assert all(model.name and isinstance(model.name, str) for model in found)
        assert all(model.context_length is None or isinstance(model.context_length, int) for model in found)


@pytest.mark.parametrize(
    ("status", "message", "blames"),
    [
        (500, "input is too large to process. increase the physical batch size", True),
        (500, "the request exceeds the available context size", True),
        (501, "This server does not support embeddings. Start it with `--embeddings`", True),
        (500, "Compute error.", False),
        (503, "input is too large", False),
        (500, "", False),
    ],
)
def test_which_of_llamacpps_own_failures_blame_the_request(status: int, message: str, blames: bool) -> None:
    assert blames_request(status, message) is blames
    for kind in ("openai", "vllm", "ollama"):
        assert DIALECTS[kind].blames_request(status, message) is False
