"""A server is asked what it is, and in its kind's way for its models; whatever else answers is told apart from that."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.orchestration.dialects import DIALECTS, FoundModel
from apps.orchestration.dialects.llamacpp import NOT_RULED_OUT, blames_request
from apps.orchestration.discovery import DiscoveryFailed, Found, MetItself, Place, discover
from tests.fleet.backend.config import Kind
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP
from tests.instance import Instance

NAMES = ["tiny", "org/big:7b", "some-embed"]
KINDS: tuple[Kind, ...] = ("openai", "vllm", "llamacpp", "ollama")

pytestmark = pytest.mark.usefixtures("citadel")


@pytest.fixture(scope="module")
def server() -> Iterator[Fleet]:
    with Fleet.start(models=NAMES) as server:
        yield server


@pytest.mark.parametrize(
    ("kind", "length", "owner"),
    [("openai", None, "system"), ("vllm", 4096, "vllm"), ("llamacpp", 4096, "llamacpp"), ("ollama", 4096, "ollama")],
)
def test_each_kind_says_what_it_is_and_has(kind: Kind, length: int | None, owner: str) -> None:
    capable = ("chat", "completion", "json_schema", "tools")
    with Fleet.start(kind=kind, models=NAMES, context_length=4096, api_key="secret") as server:
        found = discover(Place(server.url, "", "secret"))
        assert found.kind == kind
        assert [(model.name, model.context_length, model.owned_by) for model in found.models] == [
            (name, length, owner) for name in NAMES
        ]
        told = [model.capabilities for model in found.models]
        assert told == ([capable, capable, ("embedding",)] if kind == "ollama" else [None, None, None])
        assert discover(Place(server.url, kind, "secret")) == found
        assert {seen.headers["authorization"] for seen in server.log()} == {"Bearer secret"}
        with pytest.raises(DiscoveryFailed, match="answered 401"):
            discover(Place(server.url, kind, "wrong"))


def test_a_server_that_is_another_than_was_said_is_found_out() -> None:
    with Fleet.start(kind="openai", models=NAMES) as server:
        assert discover(Place(server.url, "ollama")).kind == "openai"


@pytest.mark.parametrize("was", ["vllm", "llamacpp"])
def test_a_server_that_has_become_another_at_its_address_is_found_out(was: str) -> None:
    """Though it lists its models in the old way too; unless somebody has said where its health page is."""
    with Fleet.start(kind="ollama", models=NAMES) as server:
        assert discover(Place(server.url, was)).kind == "ollama"
        assert discover(Place(server.url, was, health_path="/api/version")).kind == was
        server.behave("error 503", path="/health")
        assert discover(Place(server.url, was)).kind == was, "it has that page"
        server.behave()


def test_a_real_llama_cpp_says_what_it_is_and_sees_nothing(citadel: Instance) -> None:
    from apps.orchestration.models import Server

    demo = Server.objects.get(server_id__startswith="demo-chat")
    found = discover(Place(demo.url))
    assert found == Found("llamacpp", [FoundModel("smollm2:135m", 2048, "llamacpp", NOT_RULED_OUT, any_name=True)])
    assert (demo.kind, demo.models.get().capabilities) == ("llamacpp", list(NOT_RULED_OUT))


def test_another_citadel_is_one(citadel: Instance) -> None:
    """Asked by somebody with another secret; by itself it is refused."""
    with pytest.raises(MetItself, match="this Citadel itself"):
        discover(Place(citadel.url, "", citadel.admin_key))
    with pytest.raises(MetItself):
        discover(Place(citadel.url))
    from unittest import mock

    from citadel import config, hop

    own = hop.mark(config.load().secret)
    with mock.patch("citadel.hop.mark", lambda _secret: "another"):
        found = discover(Place(citadel.url, "", citadel.admin_key))
    assert found.kind == "citadel"
    assert {"smollm2:135m", "all-minilm"} <= {model.name for model in found.models}
    [chat] = [model for model in found.models if model.name == "smollm2:135m"]
    assert (chat.context_length, chat.capabilities) == (2048, NOT_RULED_OUT)
    assert {model.ways for model in found.models} >= {((own,),)}


def test_what_another_citadel_has_only_by_this_one_is_not_learnt_from_it(server: Fleet) -> None:
    from citadel import config, hop

    own = hop.mark(config.load().secret)
    told = {
        "its-own": [["b"]],
        "by-another-too": [["b", own], ["b", "c"]],
        "by-us": [["b", own]],
        "round-about": [["b", "c", own], ["b", "d", own]],
        "of-an-older": None,
    }
    rows = [{"id": name, "citadel": {"servers": ["s"], "through": ways}} for name, ways in told.items()]
    server.behave()
    server.behave({"json_is": {"value": json.dumps({"data": rows})}}, path="/v1/models")
    found = {model.name: model.ways for model in discover(Place(server.url, "citadel")).models}
    assert found == {"its-own": (("b",),), "by-another-too": (("b", "c"),), "of-an-older": ()}
    server.behave()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("error 500", "answered 500"),
        ("html", "list of models"),
        ("empty", "list of models"),
        ("not_json", "list of models"),
        ("die request rst", "can't be asked"),
        ("wrong_length 10", "can't be asked"),
        ({"json_is": {"value": "[]"}}, "list of models"),
        ({"json_is": {"value": '{"data": 7}'}}, "list of models"),
        ("huge_body 9000000", "more than"),
        ({"error": {"status": 302}}, "answered 302"),
        ("gzip", "list of models"),
    ],
)
def test_what_is_no_answer_is_told(server: Fleet, behaviour: str | dict[str, Any], reason: str) -> None:
    server.behave()
    server.behave(behaviour, path="/*")
    with pytest.raises(DiscoveryFailed, match=reason) as failed:
        discover(Place(server.url, "openai"))
    assert server.url in str(failed.value)
    server.behave()


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        ("error 404", "http"),
        ("html", "http"),
        ("html 404", "http"),
        ("empty", "http"),
        ({"error": {"status": 302}}, "http"),
        ("error 401", "answered 401"),
        ("error 500", "answered 500"),
        ("error 503", "answered 503"),
        ("json_is null", "list of models"),
        ("json_is 17", "list of models"),
        ("die request rst", "can't be asked"),
        ("wrong_length 10", "can't be asked"),
    ],
)
def test_a_web_server_is_told_from_a_server_that_is_out_of_order(server: Fleet, behaviour: Any, kind: str) -> None:
    server.behave()
    server.behave(behaviour, path="/*")
    if kind == "http":
        assert discover(Place(server.url)) == Found("http", [])
    else:
        with pytest.raises(DiscoveryFailed, match=kind):
            discover(Place(server.url))
    server.behave()


@pytest.mark.parametrize(
    ("behaviour", "settled"),
    [
        ("html 403", True),
        ("html 400", True),
        ("html 502", True),
        ("error 401", False),
        ("error 503", False),
        ("json_is 17", False),
        ("die request rst", False),
    ],
)
def test_what_answers_in_no_way_of_a_server_of_models_is_settled_to_be_a_web_server(
    server: Fleet, behaviour: Any, settled: bool
) -> None:
    """As one that wants a password for all its pages; but not one whose kind or models page somebody has named."""
    server.behave()
    server.behave(behaviour, path="/*")
    of_a_kind, with_a_list = Place(server.url, "ollama"), Place(server.url, models_path="/models")
    for place, settle in ((Place(server.url), False), (with_a_list, True), (of_a_kind, True)):
        with pytest.raises(DiscoveryFailed):
            discover(place, settle=settle)
    if settled:
        assert discover(Place(server.url), settle=True) == Found("http", [])
    else:
        with pytest.raises(DiscoveryFailed):
            discover(Place(server.url), settle=True)
    server.behave()


def test_who_has_a_page_of_vllms_or_of_citadels_is_not_settled(server: Fleet) -> None:
    server.behave()
    server.behave("html 401", path="/*")
    server.behave({"json_is": {"value": '{"version": "0.11.0"}'}}, path="/version")
    with pytest.raises(DiscoveryFailed, match="answered 401"):
        discover(Place(server.url), settle=True)
    server.behave()


def test_a_server_that_is_not_there_is_told(server: Fleet) -> None:
    server.behave()
    server.behave("refuse")
    for kind in ("", "openai"):
        with pytest.raises(DiscoveryFailed, match="can't be asked"):
            discover(Place(server.url, kind))
    server.behave()


@pytest.mark.parametrize("kind", ["", "openai", "ollama"])
def test_a_server_that_never_answers_takes_five_seconds_at_most(server: Fleet, kind: str) -> None:
    server.behave()
    server.behave("hang", path="/*")
    begun = time.monotonic()
    with pytest.raises(DiscoveryFailed, match="can't be asked"):
        discover(Place(server.url, kind))
    assert time.monotonic() - begun < 5.5 + HELD_UP
    server.behave()


def test_models_of_which_nothing_is_said_in_time_are_found_all_the_same() -> None:
    with Fleet.start(kind="ollama", models=NAMES) as server:
        server.behave("hang", path="/api/show")
        assert discover(Place(server.url)) == Found("ollama", [FoundModel(name, None, "ollama") for name in NAMES])


def test_an_ollama_without_a_context_of_its_own_tells_it_of_a_model_in_memory(citadel: Instance) -> None:
    """What it was trained for says nothing of that: a longer prompt would be cut."""
    with Fleet.start(kind="ollama", models=["a", "b"], context_length=4096) as server:
        details = {"model_info": {"llama.context_length": 131072}, "capabilities": ["completion"]}
        server.behave({"json_is": {"value": json.dumps(details)}}, path="/api/show")
        httpx.post(f"{server.url}/v1/completions", json={"model": "a", "prompt": "x"}).raise_for_status()
        found = discover(Place(server.url))
    assert [(model.name, model.context_length) for model in found.models] == [("a", 4096), ("b", None)]


def test_an_address_that_may_not_be_called_is_not(citadel: Instance) -> None:
    with pytest.raises(DiscoveryFailed, match="may not be called"):
        discover(Place("http://169.254.169.254", "openai"))


def test_a_page_for_models_that_somebody_named(server: Fleet) -> None:
    server.behave()
    own = discover(Place(server.url, "openai", models_path="/nothing/there"))
    assert [model.name for model in own.models] == NAMES, "one that leads nowhere does no harm"
    with Fleet.start(kind="ollama", models=NAMES) as other:
        found = discover(Place(other.url, "ollama", models_path="/v1/models"))
        assert [(model.name, model.owned_by) for model in found.models] == [(name, "library") for name in NAMES]


LISTED = {"data": [{"id": "listed-1", "owned_by": "somebody"}]}


@pytest.fixture
def elsewhere(server: Fleet) -> Iterator[Fleet]:
    """A server with its list at another address than others have it."""
    server.behave()
    server.behave("error 404", path="/*")
    server.behave({"json_is": {"value": json.dumps(LISTED)}}, path="/api/models")
    yield server
    server.behave()


@pytest.mark.parametrize("kind", ["", "http", "openai", "vllm"])
def test_a_list_at_another_address_is_one(elsewhere: Fleet, kind: str) -> None:
    """Also where nothing else tells what the server is."""
    found = discover(Place(elsewhere.url, kind, models_path="/api/models"))
    assert [model.name for model in found.models] == ["listed-1"]
    assert found.kind == (kind or "openai")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("error 503", "answered 503"), ("json_is 17", "list of models"), ("error 404", "answered 404")],
)
def test_what_is_wrong_with_a_list_at_another_address_is_told(elsewhere: Fleet, behaviour: Any, reason: str) -> None:
    elsewhere.behave(behaviour, path="/mine")
    with pytest.raises(DiscoveryFailed, match=f"/mine.*{reason}"):
        discover(Place(elsewhere.url, models_path="/mine"))


fields = st.sampled_from(
    ["data", "models", "id", "name", "max_model_len", "meta", "citadel", "n_ctx_train", "owned_by", "x", "capabilities"]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=20)
@given(kind=st.sampled_from(KINDS), payload=st.dictionaries(fields, anything, max_size=3))
def test_any_json_is_a_list_of_models_or_no_answer(server: Fleet, kind: Kind, payload: dict[str, Any]) -> None:
    server.behave()
    server.behave({"json_is": {"value": json.dumps(payload)}}, path="/*")
    try:
        found = discover(Place(server.url, kind)).models
    except DiscoveryFailed as failed:
        assert server.url in str(failed)
    else:
        assert all(model.name and isinstance(model.name, str) for model in found)
        assert all(model.context_length is None or isinstance(model.context_length, int) for model in found)


@pytest.mark.parametrize(
    ("status", "message", "blames"),
    [
        (500, "input is too large to process. increase the physical batch size", True),
        (500, "the request exceeds the available context size", True),
        (501, "This server does not support embeddings. Start it with `--embeddings`", True),
        (500, "Failed to parse messages: [json.exception.out_of_range.403] key 'text' not found", True),
        (500, 'Failed to parse messages: Missing tool call type: {"x":1}', True),
        (500, 'Failed to parse tools: Unsupported tool type: {"type":"x"}', True),
        (500, "audio input is not supported - hint: you may need to provide the mmproj", True),
        (500, "Unknown reasoning format: x", True),
        (500, "Compute error.", False),
        (503, "input is too large", False),
        (500, "", False),
    ],
)
def test_which_of_llamacpps_own_failures_blame_the_request(status: int, message: str, blames: bool) -> None:
    assert blames_request(status, message) is blames
    for kind in ("openai", "vllm", "ollama"):
        assert DIALECTS[kind].blames_request(status, message) is False
