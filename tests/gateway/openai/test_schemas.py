"""Each field of each request, with each wrong type and size, out of the schema that OpenAPI shows: `param` names it.

A validator of JSON Schema says what is wrong; the gateway's own decoder must say the same.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS, Door
from apps.gateway.openai.api import described
from citadel.errors import BadRequest

DOORS = (CHAT, COMPLETIONS, EMBEDDINGS)
Place = tuple[str | int, ...]
ANYTHING = (None, True, False, 0, -1, 3, 2**31, 2**63, 0.5, -2.5, 1e300, "", "x", "x" * 300, [], [1], [""],
            [{}], [[]], [None], {}, {"x": 1}, {"x": "y"})  # fmt: skip


def schema_of(door: Door) -> dict[str, Any]:
    schema: dict[str, Any] = described(door)["requestBody"]["content"]["application/json"]["schema"]
    return schema


def branches(schema: Any) -> list[dict[str, Any]]:
    return (
        [inner for branch in schema["anyOf"] for inner in branches(branch)]
        if "anyOf" in schema and "type" not in schema
        else [schema]
    )


def sample(schema: dict[str, Any]) -> Any:  # noqa: PLR0911  # a kind of value a line
    """A valid value with every property there is."""
    branch = max(branches(schema), key=lambda one: len(json.dumps(one)))
    if "enum" in branch:
        return branch["enum"][0]
    match branch.get("type"):
        case "object" if "properties" in branch:
            return {name: sample(inner) for name, inner in branch["properties"].items()}
        case "object":
            inner = branch.get("additionalProperties")
            return {"key": sample(inner)} if isinstance(inner, dict) and inner else {"key": 1}
        case "array":
            return [sample(branch["items"])] if branch.get("items") else ["text"]
        case "string":
            return "text"
        case "integer" | "number":
            return branch.get("minimum", 1)
        case "boolean":
            return True
    return None


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    children: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in children:
        yield (*above, name)
        yield from places(inner, (*above, name))


def put(whole: Any, place: Place, value: Any) -> Any:
    copy = json.loads(json.dumps(whole))
    target = copy
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    return copy


def shown(place: Place) -> str:
    """A place as the gateway writes it, which names no member of a mapping."""
    text = ""
    for name in place:
        if name == "key":
            return text
        text += f"[{name}]" if isinstance(name, int) else f".{name}" if text else str(name)
    return text


def cases() -> Iterator[Any]:
    for door in DOORS:
        whole = sample(schema_of(door))
        for place in places(whole):
            yield pytest.param(door, place, id=f"{door.name}-{shown(place)}")


def refusal(door: Door, body: Any) -> BadRequest | None:
    try:
        door.read(json.dumps(body).encode())
    except BadRequest as error:
        assert error.status_code == 400
        assert error.code in ("invalid_type", "invalid_value", "missing_required_parameter", "invalid_json")
        return error
    return None


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_request_with_every_field_is_read(door: Door) -> None:
    whole = sample(schema_of(door))
    jsonschema_rs.Draft202012Validator(schema_of(door)).validate(whole)
    assert refusal(door, whole) is None


@pytest.mark.parametrize(("door", "place"), list(cases()))
def test_a_wrong_value_is_refused_and_its_field_named(door: Door, place: Place) -> None:
    whole = sample(schema_of(door))
    validator = jsonschema_rs.Draft202012Validator(schema_of(door))
    wrong = 0
    for value in ANYTHING:
        body = put(whole, place, value)
        refused = refusal(door, body)
        assert (refused is None) is validator.is_valid(body), f"{shown(place)} = {value!r}: {refused}"
        if refused:
            wrong += 1
            named = refused.param or ""
            assert named and (shown(place).startswith(named) or named.startswith(shown(place))), (value, named)
            assert named.partition(".")[0].partition("[")[0] in refused.message
    assert wrong or not isinstance(place[-1], str) or "key" in place


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_missing_field_is_named(door: Door) -> None:
    whole = sample(schema_of(door))
    for name in schema_of(door)["required"]:
        refused = refusal(door, {key: value for key, value in whole.items() if key != name})
        assert refused
        assert (refused.param, refused.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"3", b'"x"', b'{"model": "a",}', b"\xff", b"<html>"])
def test_what_is_no_object_is_refused_as_such(door: Door, body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        door.read(body)
    assert caught.value.code in ("invalid_json", "invalid_type")


# Whole numbers with a point are integers to JSON Schema, and to no decoder that a server uses.
FRACTIONS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
UNKNOWN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | FRACTIONS
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKED = {"role": "user", "content": "x"}
NESTED: list[tuple[dict[str, Any], str]] = [  # of a chat; and what of it is wrong, if anything
    ({"logit_bias": {"50256": -100}}, ""),
    ({"logit_bias": {"50256": 101}}, "logit_bias"),
    ({"logit_bias": {"50256": "1"}}, "logit_bias"),
    ({"metadata": {"a": "b"}}, ""),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"tool_choice": "auto"}, ""),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {}}, "tool_choice.type"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, ""),
    ({"tool_choice": {"type": "custom"}}, "tool_choice.custom"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{}]}}}, ""),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}}, "tool_choice.allowed_tools.mode"),
    ({"tool_choice": {"type": "of the server's own"}}, ""),
    ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, ""),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"type": "of the server's own"}]}, ""),
    ({"function_call": {}}, "function_call.name"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, ""),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": 5}}}, "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}}, ""),
    ({"prediction": {"type": "content", "content": [{"type": "text"}]}}, "prediction.content[0].text"),
    ({"audio": {"voice": "alloy"}}, "audio.format"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, ""),
    ({"messages": [ASKED, {"role": "tool", "content": [], "tool_call_id": None}]}, ""),
    ({"messages": [ASKED, {"role": "tool", "content": "x", "tool_call_id": 1}]}, "messages[1].tool_call_id"),
    ({"messages": [ASKED, {"role": "tool", "tool_call_id": "1"}]}, "messages[1].content"),
    ({"messages": [ASKED, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, ""),
    ({"messages": [ASKED, {"role": "function", "content": "x"}]}, ""),
    ({"messages": [ASKED, {"role": "function", "content": None, "name": "f"}]}, ""),
    ({"messages": [ASKED, {"role": "assistant"}]}, ""),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}]}, ""),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": 5}}]}]},
     "messages[1].tool_calls[0].function.arguments"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]}]}, ""),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
     ""),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}]},
     "messages[1].tool_calls[0].custom"),
    ({"messages": [ASKED, {"role": "assistant", "function_call": {"name": 1}}]}, "messages[1].function_call.name"),
    ({"messages": [ASKED, {"role": "assistant", "content": None, "refusal": 1}]}, "messages[1].refusal"),
    ({"messages": [ASKED, {"role": "assistant", "content": None, "audio": {}}]}, "messages[1].audio.id"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
     "messages[0].content[0].image_url.url"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": 1}}]}]},
     "messages[0].content[0].image_url.detail"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": 1}}]}]},
     "messages[0].content[0].file.file_id"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "wrong"), NESTED, ids=lambda value: value if isinstance(value, str) else None)
def test_what_is_nested_is_checked_too_and_named(more: dict[str, Any], wrong: str) -> None:
    body = {"model": "m", "messages": [ASKED], **more}
    refused = refusal(CHAT, body)
    assert (refused.param if refused else "") == wrong
    assert jsonschema_rs.Draft202012Validator(schema_of(CHAT)).is_valid(body) is (refused is None)


@given(st.dictionaries(st.text(), UNKNOWN, max_size=5), st.sampled_from(DOORS))
def test_fields_that_nobody_knows_are_no_fault(more: dict[str, Any], door: Door) -> None:
    whole = sample(schema_of(door))
    unknown = {name: value for name, value in more.items() if name.casefold() not in whole}
    assert door.read(msgspec.json.encode({**unknown, **whole})).model == "text"


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_known_field_in_another_case_is_refused(door: Door) -> None:
    """Go's decoder would take it for the field itself, and a server in Go another value than was checked here."""
    whole = sample(schema_of(door))
    for name in schema_of(door)["properties"]:
        for other in {name.upper(), name.title(), name.replace("s", "\u017f"), name.replace("k", "\u212a")} - {name}:
            with pytest.raises(BadRequest) as caught:
                door.read(json.dumps({**whole, other: 1}).encode())
            assert (caught.value.param, caught.value.code) == (other, "unknown_parameter")


TOKENS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)
GOOD_INPUT = (
    st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1, max_size=4) | TOKENS | st.lists(TOKENS, min_size=1)
)


@given(GOOD_INPUT)
def test_embedding_inputs_are_taken_one_by_one(given_input: Any) -> None:
    request = EMBEDDINGS.read(msgspec.json.encode({"model": "m", "input": given_input}))
    one = isinstance(given_input, str) or isinstance(given_input[0], int)
    assert request.inputs == ([given_input] if one else given_input)  # type: ignore[union-attr]


@given(UNKNOWN)
def test_any_input_is_read_or_refused_by_name_as_the_schema_says(value: Any) -> None:
    for door, name in ((EMBEDDINGS, "input"), (COMPLETIONS, "prompt")):
        body = {"model": "m", name: value}
        refused = refusal(door, body)
        assert (refused is None) is jsonschema_rs.Draft202012Validator(schema_of(door)).is_valid(body), value
        if refused:
            assert (refused.param or "").startswith(name)


@pytest.mark.parametrize(("count", "fits"), [(2048, True), (2049, False)])
def test_a_batch_has_its_bound(count: int, fits: bool) -> None:
    assert (refusal(EMBEDDINGS, {"model": "m", "input": ["x"] * count}) is None) is fits
    assert (refusal(EMBEDDINGS, {"model": "m", "input": [[1]] * count}) is None) is fits
    assert refusal(EMBEDDINGS, {"model": "m", "input": [1] * count}) is None
