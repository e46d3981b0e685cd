"""What clients may read of a server's error: nothing of its insides, and all that is meant for them."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.inference.http.words import LONGEST, read_error, scrub
from tests.faults.invariants import HOST, KEY, PATH, STACK

LABEL = st.from_regex(r"[a-z][a-z0-9]{1,6}-[a-z0-9]{1,6}", fullmatch=True)
PORT = st.integers(10, 65535)
WORD = st.from_regex(r"[a-z][a-z0-9_-]{2,8}", fullmatch=True)
SECRET = st.from_regex(r"[A-Za-z0-9]{12,40}", fullmatch=True)
EXTENSION = st.sampled_from(["gguf", "py", "safetensors", "json", "bin"])
HEXTETS = st.lists(st.from_regex(r"[0-9a-f]{1,4}", fullmatch=True), min_size=1, max_size=3)


def joined(separator: str, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda drawn: separator.join(map(str, drawn)))


HOSTS = joined(".", LABEL, WORD.map(lambda word: word.replace("_", ""))) | LABEL
PATHS = st.lists(WORD, min_size=2, max_size=4).map("/".join)
INTERNALS = st.one_of(
    joined(":", HOSTS, PORT),
    joined(".", LABEL, st.sampled_from(["internal", "local", "corp", "lan"])),
    joined("", st.sampled_from(["http://", "https://", "file:///", "grpc://", "file:/"]), PATHS),
    HEXTETS.map(lambda groups: f"[fe80::{':'.join(groups)}]:8000"),
    HEXTETS.map(lambda groups: f"fd00::{':'.join(groups)}"),
    st.ip_addresses().map(str).filter(lambda address: address != "::"),
    joined("", st.sampled_from(["sk-", "ctd_", "Bearer ", "hf_"]), SECRET),
    PATHS.map(lambda path: f"/{path}"),
    joined(".", PATHS, EXTENSION),
    joined(".", PATHS.map(lambda path: f"./{path}"), EXTENSION),
    PATHS.map(lambda path: f"~/{path}"),
    PATHS.map(lambda path: "C:\\" + path.replace("/", "\\")),
)
BEFORE = st.sampled_from(["", "bad: ", "the key (", "host=", "at '", 'open "', "no such thing:"])
AFTER = st.sampled_from(["", " failed", ") refused", ", again", "' is away", '" is away', "\nand so on"])
FRAMES = st.sampled_from(
    [
        'File "{0}", line 3, in f\n    raise ValueError({1})',
        'Traceback (most recent call last):\n  File "{0}", line 3, in f\n    {1}()\nValueError: {1}',
        "goroutine 1 [running]:\nmain.{1}(0x0)\n\t{0}:3 +0x1d",
        "panic: {1}\n\ngoroutine 7 [running]:",
        "    at {1} ({0}:3:14)\n    at node:internal/main:1",
        "at node:internal/{1}:1",
        "at org.example.{1}(Main.java:12)",
        "thread 'main' panicked at {0}:3",
        "#0 0x00007f in {1} () from {0}",
    ]
)


@given(BEFORE, INTERNALS, AFTER)
def test_nothing_of_its_insides_is_left(before: str, internal: str, after: str) -> None:
    said = scrub(f"{before}{internal}{after}")
    assert internal not in said
    assert internal.rpartition(" ")[2] not in said
    for pattern in (HOST, PATH, KEY):
        assert not pattern.search(said.encode()), said


@given(st.sampled_from(["", "it failed: ", "it failed\n"]), FRAMES, PATHS, SECRET)
def test_no_stack_is_left(before: str, frame: str, path: str, name: str) -> None:
    said = scrub(before + frame.format(f"/{path}.py", name))
    assert said == before.strip() or said.startswith(before.strip())
    assert name not in said
    assert path not in said
    assert not STACK.search(said.encode())


@pytest.mark.parametrize(
    "message",
    [
        "messages[0].content: expected string",
        "temperature must be <= 2.0",
        "maximum context length is 2048 tokens",
        "Field 'top_k': [json.exception.type_error.302] type must be number, but is string",
        "Failed to parse messages: Missing tool call type: {\"x\":1}",
        "request (20031 tokens) exceeds the available context size (2048 tokens), try increasing it",
        "1 validation error: body.messages.0.content: Input should be a valid string [type=string_type, input_value=5]",
        "model 'qwen2.5:0.5b' does not support tools, nor does smollm2:135m, meta-llama/Llama-3.1-8B or gpt-oss:20b",
        "Either text and/or an image, e.g. image/png; 3/4 of it, at position 12:30",
        "Expecting ',' delimiter: line 1 column 5 (char 4) at 12:30:45",
        'root ::= "a" | std::string',
        "Value must be between 1 <= value <= 4, but got 100: n",
        "max_tokens:4096 is too large; sk-1, task-1234567 and risk-assessment are words",
        "a bearing, at most 3 (of 5), at the end (line 3)",
    ],
)  # fmt: skip
def test_what_is_meant_for_clients_passes(message: str) -> None:
    assert scrub(message) == message


def test_what_a_review_found() -> None:
    said = scrub("bad: gpu-7.corp:8000 refused key sk-abc123def456ghi789, see models/x.gguf")
    assert said == "bad: … refused key …, see …"
    for inside in ("llm-01.internal:11434", "[fe80::1]:8000", "file:///srv/models/a", "::1", "ollama:11434"):
        assert scrub(inside) == "…"
    assert scrub("no such thing:1234::5678") == "no such thing:…"
    assert scrub("dial ollama:11434: refused") == "dial …: refused"
    for frame in ('File "x", line 3, in f', "at node:internal/main:1", "goroutine 1 [running]"):
        assert scrub(frame) == ""


@given(st.text(max_size=2000))
def test_it_is_never_long(message: str) -> None:
    assert len(scrub(message)) <= LONGEST


@pytest.mark.parametrize(
    "piece", ["a", "a.", "a/", "a-", "[::", "1:", "at ", "1.1", ":", "/", "~/", "a.b:", "\\\\a", "at a:"]
)
def test_no_message_takes_long(piece: str) -> None:
    begun = time.process_time()
    scrub(piece * 500_000)
    assert time.process_time() - begun < 0.05


def told(**error: Any) -> tuple[str | None, str | None]:
    words = read_error(json.dumps({"error": error}).encode())
    return words.code, words.param


@pytest.mark.parametrize(
    ("value", "passes"),
    [
        ("messages[0].content", True),
        ("context_length_exceeded", True),
        ("http://10.0.0.3/", False),
        ("/srv/x", False),
        ("10.0.0.3", False),
        ("gpu-7.corp", False),
        ("sk-abc123def456ghi789", False),
        ("a b", False),
        ("x" * 65, False),
        ("", False),
        (5, False),
    ],
)
def test_code_and_param_are_names_or_nothing(value: Any, passes: bool) -> None:
    assert told(message="x", code=value, param=value) == ((value, value) if passes else (None, None))


def test_llamacpp_names_the_field_in_its_message() -> None:
    assert told(message="Field 'top_k': type must be number", code=400) == (None, "top_k")
    assert told(message="Field '/srv/x': type must be number") == (None, None)


@pytest.mark.parametrize(
    "error",
    [
        {"code": 400, "message": "too long", "type": "exceed_context_size_error"},
        {"code": 400, "message": "This model's maximum context length is 2048 tokens. However, you requested 3000."},
        {"message": "The prompt (length 9) is longer than the maximum model length of 8", "type": "BadRequestError"},
        {"message": "the input length exceeds the context length", "type": "invalid_request_error", "code": None},
    ],
)
def test_too_much_for_the_context_has_openais_code(error: dict[str, Any]) -> None:
    assert told(**error) == ("context_length_exceeded", None)
    assert read_error(json.dumps({"error": error["message"]}).encode()).code in ("context_length_exceeded", None)


@pytest.mark.parametrize("nothing", [None, {}, "", True, 1, ["x"]])
def test_what_stands_beside_an_error_that_says_nothing_is_read(nothing: Any) -> None:
    words = read_error(json.dumps({"error": nothing, "message": "no", "code": "bad_thing"}).encode())
    assert (words.message, words.code) == ("no", "bad_thing")


def test_a_code_of_the_servers_own_stays() -> None:
    assert told(message="maximum context length", code="string_above_max_length")[0] == "string_above_max_length"
