"""What kinds of servers say, read: pure, and for any JSON at all."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.dialects import DIALECTS, FoundModel
from apps.orchestration.dialects.detection import ALIVE, HEALTH, MODELS, PATHS, PROPERTIES, TAGS, VERSION, kind_of
from apps.orchestration.health.conditions import Load

LIST = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]}
NOTHING = {"object": "list", "data": []}


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({MODELS: LIST}, "openai"),
        ({MODELS: NOTHING}, "openai"),
        ({MODELS: {"data": [{"id": "m", "owned_by": "vllm"}]}}, "vllm"),
        ({MODELS: NOTHING, VERSION: {"version": "0.11.0"}, HEALTH: ""}, "vllm"),
        ({MODELS: NOTHING, VERSION: {"version": "v3.8.0"}}, "openai"),
        ({MODELS: LIST, VERSION: {"version": "v3.8.0"}}, "openai"),  # LocalAI
        ({MODELS: LIST, VERSION: {"version": "v3.8.0"}, HEALTH: {"status": "ok"}}, "openai"),
        ({MODELS: {"data": [{"id": "m", "owned_by": "llamacpp"}]}}, "llamacpp"),
        ({MODELS: {**LIST, "models": []}, TAGS: {"models": []}, PROPERTIES: {"total_slots": 4}}, "llamacpp"),
        ({MODELS: LIST, PROPERTIES: {"role": "router"}}, "llamacpp"),
        ({MODELS: LIST, PROPERTIES: {"role": "admin"}}, "openai"),
        ({MODELS: LIST, TAGS: {"models": []}, VERSION: {"version": "1"}}, "ollama"),
        ({TAGS: {"models": None}}, "ollama"),
        ({MODELS: {"data": [{"id": "m", "owned_by": "vllm", "citadel": {}}]}, VERSION: {"version": "1"}}, "citadel"),
        ({MODELS: NOTHING, ALIVE: {"status": "alive"}}, "citadel"),
        ({MODELS: LIST, ALIVE: {"status": "alive"}}, "openai"),
        ({ALIVE: {"status": "alive"}}, "http"),
        ({}, "http"),
        ({VERSION: {"version": "1"}, PROPERTIES: "<html>", TAGS: [], ALIVE: {"status": "ok"}}, "http"),
        (dict.fromkeys(PATHS, "<html>"), "http"),
    ],
)
def test_the_kind_is_told_by_what_is_answered(answers: dict[str, Any], kind: str) -> None:
    assert kind_of(answers) == kind


KEYS = """data models id name owned_by citadel status version total_slots role max_model_len meta n_ctx capabilities
model_info x.context_length parameters modalities vision default_generation_settings is_sleeping value context_length"""
keys = st.sampled_from(KEYS.split())
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(PATHS), anything))
def test_any_answers_are_of_some_kind(answers: dict[str, Any]) -> None:
    assert kind_of(answers) in DIALECTS


@given(st.sampled_from(sorted(DIALECTS)), anything, anything)
def test_any_json_is_read_or_is_no_list(kind: str, payload: Any, detail: Any) -> None:
    dialect = DIALECTS[kind]
    try:
        models = dialect.read_models(payload)
    except ValueError:
        models = [FoundModel("m")]
    for model in models:
        questions = dialect.ask_about(model)
        whole = dialect.complete(model, {question.path: detail for question in questions})
        assert whole.name == model.name
        assert whole.context_length is None or 0 < whole.context_length < 2**31
        assert whole.capabilities is None or all(isinstance(one, str) and one for one in whole.capabilities)
        assert all(question.path.startswith("/") for question in questions)
        assert len({question.path for question in questions}) == len(questions)


@given(st.sampled_from(sorted(DIALECTS)), st.data())
def test_any_json_is_a_load_that_makes_sense(kind: str, data: st.DataObject) -> None:
    dialect = DIALECTS[kind]
    rows = st.lists(st.dictionaries(st.sampled_from(["is_processing", "id"]), anything))
    answers = {path: data.draw(anything | st.text() | rows) for path in (*dialect.load_paths, "/own/metrics")}
    load = dialect.read_load(answers)
    assert isinstance(load, Load)
    for number in (load.in_flight, load.queue):
        assert number is None or number >= 0
    assert load.models is None or all(isinstance(name, str) for name in load.models)


def test_a_probe_asks_nothing_that_loads_a_model_or_keeps_it_in_memory() -> None:
    """llama.cpp's `/slots` and `/metrics` wake a model that sleeps; Ollama's `/api/generate` loads one."""
    asked = {path for dialect in DIALECTS.values() for path in (*dialect.load_paths, dialect.health_path)}
    assert asked == {"/", "/health", "/health/", "/v1/models", "/api/version", "/api/ps", "/props", "/metrics"}
    assert "/metrics" not in DIALECTS["llamacpp"].load_paths


@pytest.mark.parametrize(
    ("kind", "answers", "load"),
    [
        ("ollama", {"/api/ps": {"models": [{"name": "a:1"}, {"name": "b"}]}}, Load(models=("a:1", "b"))),
        ("ollama", {"/api/ps": {"models": []}}, Load(models=())),
        ("ollama", {}, Load()),
        ("llamacpp", {"/v1/models": LIST, "/props": {"is_sleeping": False}}, Load(models=("m",), any_name=True)),
        ("llamacpp", {"/v1/models": LIST, "/props": {"is_sleeping": True}}, Load(models=())),
        ("llamacpp", {"/v1/models": LIST}, Load(models=("m",), any_name=True)),
        ("llamacpp", {"/v1/models": LIST, "/props": {"role": "router"}}, Load(models=("m",))),
        ("llamacpp", {"/v1/models": {"data": []}}, Load(models=())),
        ("llamacpp", {"/props": {}}, Load()),
        (
            "llamacpp",
            {
                "/v1/models": {
                    "data": [{"id": "a", "status": {"value": "loaded"}}, {"id": "b", "status": {"value": "x"}}]
                }
            },
            Load(models=("a",)),
        ),
        (
            "llamacpp",
            {"/metrics": "llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"},
            Load(in_flight=2, queue=1),
        ),
        (
            "llamacpp",
            {"/slots": [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]},
            Load(in_flight=1),
        ),
        ("llamacpp", {"/slots": [{"is_processing": True}, {"is_processing": 1}]}, Load(in_flight=1)),
        ("llamacpp", {"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}, Load(models=("a", "b"))),
        ("llamacpp", {"/own/slots": [{"is_processing": False}]}, Load(in_flight=0)),
        ("llamacpp", {"/slots": [1, {"id": 0}]}, Load()),
        ("llamacpp", {"/slots": []}, Load()),
        (
            "vllm",
            {
                "/metrics": "# HELP vllm:num_requests_running x\n# TYPE vllm:num_requests_running gauge\n"
                'vllm:num_requests_running{engine="0",model_name="a } b"} 3.0\n'
                'vllm:num_requests_running{engine="1",model_name="a"} 2.0 1700000000\n'
                'vllm:num_requests_waiting{engine="0"} 7.0\nvllm:num_requests_waiting{engine="1"} NaN\n'
                "vllm:num_requests_running_total 99\nvllm:num_requests_waiting\n"
            },
            Load(in_flight=5, queue=7),
        ),
        (
            "vllm",
            {"/metrics": 'vllm:num_requests_waiting{a="0"} 1e308\nvllm:num_requests_waiting{a="1"} 1e308\n'},
            Load(queue=1_000_000),
        ),
        ("vllm", {"/metrics": {"not": "text"}}, Load()),
        ("vllm", {MODELS: {"data": [{"id": "m"}, {"id": "m-lora"}]}}, Load(models=("m", "m-lora"))),
        ("vllm", {MODELS: "<html>", "/metrics": "vllm:num_requests_running 1"}, Load(in_flight=1)),
        ("openai", {"/own": "sglang:num_running_reqs 2\nsglang:num_queue_reqs 4"}, Load(in_flight=2, queue=4)),
        ("openai", {}, Load()),
        ("http", {"/own": "vllm:num_requests_waiting 4"}, Load()),
    ],
)
def test_load_and_models_in_memory(kind: str, answers: dict[str, Any], load: Load) -> None:
    assert DIALECTS[kind].read_load(answers) == load


OF_LLAMA = {"model_info": {"general.architecture": "llama", "llama.context_length": 131072}}
PARAMETERS = f'{"num_ctx":<30} 8192\n{"stop":<30} "<|eot_id|>"'
"""As Ollama 0.12 writes them."""


@pytest.mark.parametrize(
    ("details", "in_memory", "length"),
    [
        ({**OF_LLAMA, "parameters": PARAMETERS}, None, 8192),
        ({**OF_LLAMA, "parameters": PARAMETERS}, 4096, 8192),  # somebody has loaded it with another one
        ({**OF_LLAMA, "parameters": "num_ctx 8192"}, None, 8192),
        ({**OF_LLAMA, "parameters": "num_ctx 200000"}, None, 131072),
        ({**OF_LLAMA, "parameters": 'stop "num_ctx 8192"'}, None, None),
        ({**OF_LLAMA, "parameters": "num_ctx 99999999999"}, 4096, 4096),
        ({"parameters": "num_ctx 8192"}, None, 8192),
        ({**OF_LLAMA, "parameters": 7}, 4096, 4096),
        (OF_LLAMA, 4096, 4096),
        (OF_LLAMA, None, None),  # which is not what it was trained for
        (OF_LLAMA, "x", None),
        ({"model_info": {"bert.context_length": 512}}, None, 512),  # which each gives it
        ({"model_info": {"bert.context_length": 512}}, 2048, 512),
        ({"model_info": {"llama.context_length": -1}}, None, None),
        ("no object", None, None),
    ],
)
def test_what_context_ollama_gives_a_model(details: Any, in_memory: Any, length: int | None) -> None:
    rows = [{"name": "other", "context_length": 1}, {"name": "m:latest", "context_length": in_memory}]
    answers = {"/api/show": details, "/api/ps": {"models": rows if in_memory else rows[:1]}}
    assert DIALECTS["ollama"].complete(FoundModel("m"), answers).context_length == length


@pytest.mark.parametrize(
    ("told", "capabilities"),
    [
        (["completion", "vision"], ("chat", "completion", "json_schema", "vision")),
        (["embedding"], ("embedding",)),
        ([], None),
        (None, None),
    ],
)
def test_what_ollama_says_that_a_model_can_do(told: Any, capabilities: tuple[str, ...] | None) -> None:
    answers = {"/api/show": {**OF_LLAMA, "capabilities": told}}
    assert DIALECTS["ollama"].complete(FoundModel("m"), answers).capabilities == capabilities


def test_what_llama_cpp_says_of_its_model() -> None:
    model = FoundModel("m", 131072)

    def complete(model: FoundModel, properties: dict[str, Any]) -> FoundModel:
        return DIALECTS["llamacpp"].complete(model, {PROPERTIES: properties})

    props = {"default_generation_settings": {"n_ctx": 4096}, "modalities": {"vision": True, "audio": False}}
    assert complete(model, props).context_length == 4096, "of one slot, not of the training"
    assert "vision" in (complete(model, props).capabilities or ())
    deaf = complete(model, {**props, "modalities": {"vision": False}}).capabilities or ()
    assert "vision" not in deaf and {"tools", "json_schema", "chat", "embedding"} <= set(deaf)
    assert complete(model, {"total_slots": 1}) == model, "an older one says nothing of what it sees"
    assert complete(model, {"role": "router", "default_generation_settings": {"n_ctx": 0}}) == model


@pytest.mark.parametrize(
    ("rows", "properties", "any_name"),
    [
        ([{"id": "/models/x.gguf"}], {"total_slots": 1}, True),
        ([{"id": "/models/x.gguf"}], {}, True),
        ([{"id": "a"}, {"id": "b"}], {}, False),
        ([{"id": "a", "status": {"value": "loaded"}}], {}, False),
        ([{"id": "a"}], {"role": "router"}, False),
    ],
)
def test_a_single_llama_cpp_answers_to_any_name(rows: Any, properties: Any, any_name: bool) -> None:
    dialect = DIALECTS["llamacpp"]
    models = [dialect.complete(model, {PROPERTIES: properties}) for model in dialect.read_models({"data": rows})]
    assert {model.any_name for model in models} == {any_name}


def test_another_citadel_hands_on_what_it_knows() -> None:
    row = {"id": "m", "owned_by": "x", "citadel": {"servers": ["s"], "context_length": 2048, "capabilities": ["tools"]}}
    assert DIALECTS["citadel"].read_models({"data": [row]}) == [FoundModel("m", 2048, "x", ("tools",))]


def test_a_web_server_has_no_models_and_a_stranger_is_asked_as_one_of_openais() -> None:
    assert DIALECTS["http"].read_models("<html>") == []
    assert dataclasses.replace(DIALECTS[""], health_path="/v1/models") == DIALECTS["openai"]
