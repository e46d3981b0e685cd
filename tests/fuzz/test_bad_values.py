"""A valid request in which one field, however deep, has a value of the wrong type or size: a 400 that names the field.

The fields and what is wrong for each are written here by hand, so that the schema is not its own judge.
"""

import copy
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fleet.control import Fleet
from tests.instance import Instance

MODEL = f"strict-{secrets.token_hex(4)}"
BIGGEST = 2**31 - 1

Values = SearchStrategy[Any]
LEAF = st.none() | st.booleans() | st.integers(-100, 100) | st.text(max_size=5)
KINDS: dict[type | None, Values] = {
    None: st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**70), 2**70),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=20),
    list: st.lists(LEAF, max_size=3),
    dict: st.dictionaries(st.text(max_size=5), LEAF, max_size=3),
}


def no(*kinds: type | None) -> Values:
    """Any JSON value but those of some kinds."""
    return st.one_of([values for kind, values in KINDS.items() if kind not in kinds])


def optional(*kinds: type | None) -> Values:
    return no(None, *kinds)


def whole(least: int, most: int) -> Values:
    """Wrong for an optional whole number."""
    return optional(int) | st.integers(-(2**70), least - 1) | st.integers(most + 1, 2**70)


def number(least: float, most: float) -> Values:
    """Wrong for an optional number."""
    return (
        optional(int, float)
        | st.floats(max_value=least, exclude_max=True, allow_infinity=False)
        | st.floats(min_value=most, exclude_min=True, allow_infinity=False)
    )


def one_of(*words: str, but: tuple[type | None, ...] = ()) -> Values:
    """Wrong for one word of a few, or a value of another kind that may be there as well."""
    return no(str, *but) | st.text(max_size=20).filter(lambda text: text not in words)


NAME = no(str) | st.just("") | st.just("x" * 256)
INPUTS = st.sampled_from([[], [None], [True], [1, "a"], ["a", 1], [-1], [2**31], [[]], [[1], []], [[1], ["a"]], [{}]])

COMMON = {
    "model": NAME,
    "stream": optional(bool),
    "stream_options": optional(dict),
    "stream_options.include_usage": optional(bool),
    "stream_options.include_obfuscation": optional(bool),
    "max_tokens": whole(0, BIGGEST),
    "max_completion_tokens": whole(1, BIGGEST),
    "n_predict": whole(0, BIGGEST),
    "min_tokens": whole(0, BIGGEST),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": whole(-1, BIGGEST),
    "min_p": number(0, 1),
    "n": whole(1, 128),
    "n_cmpl": whole(1, 128),
    "stop": optional(str, list),
    "stop[1]": no(str),
    "seed": whole(-(2**63), 2**63 - 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": optional(dict),
    "logit_bias[50256]": number(-100, 100) | st.none(),
    "user": optional(str),
}
CHAT = {
    **COMMON,
    "messages": no(list) | st.just([]),
    "messages[1]": no(dict),
    "messages[0].role": one_of("system", "developer", "user", "assistant", "tool", "function"),
    "max_tokens": whole(1, BIGGEST),
    "messages[0].content": no(str, list) | st.just([]),
    "messages[2].content": optional(str, list),
    "messages[3].content": no(str, list),
    "messages[0].name": optional(str),
    "messages[1].content[0]": no(dict),
    "messages[1].content[0].type": NAME,
    "messages[1].content[0].text": no(str),
    "messages[1].content[1].image_url": no(str, dict),
    "messages[1].content[1].image_url.url": no(str) | st.just(""),
    "messages[1].content[1].image_url.detail": optional(str),
    "messages[1].content[2].input_audio": no(dict),
    "messages[1].content[2].input_audio.data": no(str),
    "messages[1].content[2].input_audio.format": no(str),
    "messages[1].content[3].file": no(dict),
    "messages[1].content[3].file.file_id": optional(str),
    "messages[1].content[3].file.file_data": optional(str),
    "messages[1].content[3].file.filename": optional(str),
    "messages[1].content[4].refusal": no(str),
    "messages[2].refusal": optional(str),
    "messages[2].audio": optional(dict),
    "messages[2].audio.id": no(str),
    "messages[2].function_call": optional(dict),
    "messages[2].function_call.name": NAME,
    "messages[2].function_call.arguments": optional(str, dict),
    "messages[2].tool_calls": optional(list),
    "messages[2].tool_calls[0]": no(dict),
    "messages[2].tool_calls[0].id": no(str),
    "messages[2].tool_calls[0].type": NAME,
    "messages[2].tool_calls[0].function": no(dict),
    "messages[2].tool_calls[0].function.name": NAME,
    "messages[2].tool_calls[0].function.arguments": optional(str, dict),
    "messages[2].tool_calls[1].custom": no(dict),
    "messages[2].tool_calls[1].custom.name": NAME,
    "messages[2].tool_calls[1].custom.input": no(str),
    "messages[3].tool_call_id": optional(str),
    "messages[4].name": optional(str),
    "tools": optional(list),
    "tools[0]": no(dict),
    "tools[0].type": NAME,
    "tools[0].function": no(dict),
    "tools[0].function.name": NAME,
    "tools[0].function.description": optional(str),
    "tools[0].function.parameters": optional(dict),
    "tools[0].function.strict": optional(bool),
    "tools[1].custom": no(dict),
    "tools[1].custom.name": NAME,
    "tools[1].custom.description": optional(str),
    "tools[1].custom.format": optional(dict),
    "tool_choice": one_of("none", "auto", "required", but=(None, dict)),
    "tool_choice.type": NAME,
    "tool_choice.function": no(dict),
    "tool_choice.function.name": NAME,
    "parallel_tool_calls": optional(bool),
    "functions": optional(list),
    "functions[0]": no(dict),
    "functions[0].name": NAME,
    "functions[0].description": optional(str),
    "functions[0].parameters": optional(dict),
    "function_call": one_of("none", "auto", but=(None, dict)),
    "function_call.name": NAME,
    "modalities": optional(list),
    "modalities[0]": no(str),
    "reasoning_effort": optional(str),
    "verbosity": optional(str),
    "service_tier": optional(str),
    "safety_identifier": optional(str),
    "prompt_cache_key": optional(str),
    "prompt_cache_retention": optional(str),
    "web_search_options": optional(dict),
    "audio": optional(dict),
    "audio.voice": no(str, dict),
    "audio.format": no(str),
    "prediction": optional(dict),
    "prediction.type": NAME,
    "prediction.content": no(str, list),
    "metadata": optional(dict) | st.just({str(key): "" for key in range(17)}),
    "metadata[ticket]": no(str),
    "store": optional(bool),
    "response_format": optional(dict),
    "response_format.type": one_of("text", "json_object", "json_schema", "json", "grammar", "regex", "structural_tag"),
    "response_format.json_schema": no(dict),
    "response_format.json_schema.name": optional(str) | st.just("") | st.just("x" * 256),
    "response_format.json_schema.description": optional(str),
    "response_format.json_schema.schema": optional(dict),
    "response_format.json_schema.strict": optional(bool),
    "logprobs": optional(bool),
    "top_logprobs": whole(0, 20),
}
COMPLETIONS = {
    **COMMON,
    "prompt": no(str, list) | INPUTS | st.just(["x"] * 2049),
    "suffix": optional(str),
    "echo": optional(bool),
    "logprobs": whole(0, 20),
    "best_of": whole(1, 128),
}
EMBEDDINGS = {
    "model": NAME,
    "input": no(str, list) | INPUTS | st.sampled_from(["", [""], ["x"] * 2049]),
    "encoding_format": one_of("float", "base64", but=(None,)),
    "dimensions": whole(1, BIGGEST),
    "user": optional(str),
}

SCHEMA = {"name": "any", "description": "Any.", "schema": {"type": "object"}, "strict": False}
GENERATION: dict[str, Any] = {
    "model": MODEL,
    "stream": False,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "n_predict": 5,
    "min_tokens": 0,
    "temperature": 0.5,
    "top_p": 1,
    "top_k": 40,
    "min_p": 0.05,
    "n": 1,
    "n_cmpl": 1,
    "stop": ["one", "two"],
    "seed": 7,
    "presence_penalty": 0,
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "user": "somebody",
}
FUNCTION = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
CUSTOM_CALL = {"id": "call_2", "type": "custom", "custom": {"name": "note", "input": "text"}}
SAID = {"refusal": None, "audio": {"id": "audio_1"}, "function_call": {"name": "find", "arguments": "{}"}}
NOTE = {"name": "note", "description": "Notes.", "format": {"type": "text"}}
PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "file", "file": {"file_id": "file-1", "file_data": None, "filename": "a.txt"}},
    {"type": "refusal", "refusal": "No."},
    {"type": "video_url", "video_url": 5},
]
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **GENERATION,
        "messages": [
            {"role": "system", "content": "Be brief.", "name": "operator"},
            {"role": "user", "content": PARTS},
            {"role": "assistant", "content": None, "tool_calls": [CALL, CUSTOM_CALL], **SAID},
            {"role": "tool", "content": "Nothing.", "tool_call_id": "call_1"},
            {"role": "function", "content": "Nothing.", "name": "find"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": NOTE}],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "parallel_tool_calls": True,
        "functions": [{**FUNCTION}],
        "function_call": {"name": "find"},
        "modalities": ["text"],
        "reasoning_effort": "low",
        "verbosity": "low",
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "prompt_cache_retention": "24h",
        "web_search_options": {},
        "audio": {"voice": "alloy", "format": "wav"},
        "prediction": {"type": "content", "content": "x"},
        "metadata": {"ticket": "7"},
        "store": False,
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {**GENERATION, "prompt": ["a", "b"], "suffix": "!", "echo": True, "logprobs": 1, "best_of": 1},
    "/v1/embeddings": {
        "model": MODEL,
        "input": ["a", "b"],
        "encoding_format": "float",
        "dimensions": 8,
        "user": "somebody",
    },
}
FIELDS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS, "/v1/embeddings": EMBEDDINGS}


MAPPINGS = ("logit_bias", "metadata")
"""Fields of which a value is wrong as a whole, whatever its key."""


def steps(field: str) -> list[str | int]:
    """`messages[0].role` as keys and indices; so is the key of a mapping written."""
    found = re.findall(r"\[(\w+)\]|([^.\[\]]+)", field)
    return [name or (index if field.startswith(MAPPINGS) else int(index)) for index, name in found]


def put(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy of `body` in which `field` has this value; a field that isn't there is an error in the table."""
    changed = copy.deepcopy(body)
    target: Any = changed
    *above, last = steps(field)
    for step in above:
        target = target[step]
    assert isinstance(last, int) or last in target
    target[last] = value
    return changed


@pytest.fixture(scope="module")
def server(citadel: Instance) -> Iterator[Fleet]:
    with Fleet.start(models=[MODEL]) as started, citadel.registered(started.url, [MODEL]):
        yield started


@pytest.fixture(scope="module")
def client(citadel: Instance, server: Fleet) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {citadel.key()}"
        yield session


@pytest.mark.parametrize("path", VALID)
def test_a_request_with_every_field_is_served(citadel: Instance, client: requests.Session, path: str) -> None:
    answer = client.post(citadel.url + path, json=VALID[path])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, fields in FIELDS.items() for field in fields])
def test_a_wrong_value_is_refused_and_its_field_named(
    citadel: Instance, client: requests.Session, server: Fleet, path: str, field: str
) -> None:
    server.clear()
    named = field.partition("[")[0] if field.startswith(MAPPINGS) else field

    @settings(max_examples=25)
    @given(FIELDS[path][field])
    def check(value: Any) -> None:
        answer = client.post(citadel.url + path, json=put(VALID[path], field, value))
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == named
        assert error["type"] == "invalid_request_error"
        assert f"'{named}'" in error["message"]

    check()
    assert not server.calls(), "a request that the schema refuses never reaches a server"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "model"),
        ("/v1/chat/completions", "messages"),
        ("/v1/chat/completions", "messages[0].role"),
        ("/v1/chat/completions", "messages[0].content"),
        ("/v1/chat/completions", "messages[1].content[0].type"),
        ("/v1/chat/completions", "messages[1].content[0].text"),
        ("/v1/chat/completions", "messages[1].content[1].image_url"),
        ("/v1/chat/completions", "messages[1].content[1].image_url.url"),
        ("/v1/chat/completions", "messages[1].content[2].input_audio"),
        ("/v1/chat/completions", "messages[1].content[2].input_audio.data"),
        ("/v1/chat/completions", "messages[1].content[3].file"),
        ("/v1/chat/completions", "messages[1].content[4].refusal"),
        ("/v1/chat/completions", "messages[2].tool_calls[0].id"),
        ("/v1/chat/completions", "messages[2].tool_calls[0].type"),
        ("/v1/chat/completions", "messages[2].tool_calls[0].function"),
        ("/v1/chat/completions", "messages[2].tool_calls[0].function.name"),
        ("/v1/chat/completions", "messages[2].tool_calls[1].custom"),
        ("/v1/chat/completions", "messages[2].audio.id"),
        ("/v1/chat/completions", "messages[2].function_call.name"),
        ("/v1/chat/completions", "messages[3].content"),
        ("/v1/chat/completions", "tool_choice.type"),
        ("/v1/chat/completions", "tool_choice.function"),
        ("/v1/chat/completions", "tool_choice.function.name"),
        ("/v1/chat/completions", "function_call.name"),
        ("/v1/chat/completions", "audio.format"),
        ("/v1/chat/completions", "prediction.content"),
        ("/v1/chat/completions", "tools[0].type"),
        ("/v1/chat/completions", "tools[0].function"),
        ("/v1/chat/completions", "tools[0].function.name"),
        ("/v1/chat/completions", "functions[0].name"),
        ("/v1/chat/completions", "response_format.type"),
        ("/v1/chat/completions", "response_format.json_schema"),
        ("/v1/completions", "model"),
        ("/v1/completions", "prompt"),
        ("/v1/embeddings", "model"),
        ("/v1/embeddings", "input"),
    ],
)
def test_a_field_that_must_be_there_is_missed_by_name(
    citadel: Instance, client: requests.Session, path: str, field: str
) -> None:
    body = copy.deepcopy(VALID[path])
    target: Any = body
    *above, last = steps(field)
    for step in above:
        target = target[step]
    del target[last]
    answer = client.post(citadel.url + path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert last in answer.json()["error"]["message"]
