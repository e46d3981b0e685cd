"""The embedding server from the outside: a real model, its vectors and its refusals."""

import base64
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.embedded_models.conftest import ModelServer, running
from tests.held_up import HELD_UP

MODULE = "citadel.embedded.embedding_server"
DOCUMENT = "the river runs under a green house and often walks " * 15  # 150 words


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with running(MODULE) as server:
        server.wait_until_healthy()
        yield server


def post(server: ModelServer, given: Any, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/embeddings", json={"model": "all-minilm", "input": given, **fields})


def vectors(server: ModelServer, given: Any) -> list[list[float]]:
    answer = post(server, given)
    assert answer.status_code == 200, answer.text
    return [entry["embedding"] for entry in answer.json()["data"]]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))  # the vectors have unit length


def test_health_and_models(server: ModelServer) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    models = server.client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["all-minilm"]


def test_the_shape_of_an_answer(server: ModelServer) -> None:
    answer = post(server, ["hello world", "hi"]).json()
    assert answer["object"] == "list"
    assert answer["model"] == "all-minilm"
    assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert all(len(entry["embedding"]) == 384 for entry in answer["data"])
    assert answer["usage"] == {"prompt_tokens": 4 + 3, "total_tokens": 4 + 3}  # with [CLS] and [SEP]
    assert cosine(*[answer["data"][0]["embedding"]] * 2) == pytest.approx(1, abs=1e-5)


def test_sentences_of_like_meaning_are_close(server: ModelServer) -> None:
    cat, kitten, stocks, shares = vectors(
        server,
        [
            "A cat sits on the mat.",
            "A kitten is resting on a rug.",
            "The stock market fell sharply today.",
            "Shares dropped on Wall Street.",
        ],
    )
    near = min(cosine(cat, kitten), cosine(stocks, shares))
    far = max(cosine(cat, stocks), cosine(cat, shares), cosine(kitten, stocks), cosine(kitten, shares))
    assert near > far + 0.3


def test_a_vector_does_not_depend_on_its_company(server: ModelServer) -> None:
    (alone,) = vectors(server, "A cat sits on the mat.")
    crowd = ["A cat sits on the mat." if number == 17 else "word " * number for number in range(1, 40)]
    assert vectors(server, crowd)[16] == pytest.approx(alone, abs=1e-6)


def test_answers_stand_in_the_order_of_the_inputs(server: ModelServer) -> None:
    texts = ["a long text about rivers " * 20, "cat", "a middling text about the weather in Paris", "dog"]
    together = vectors(server, texts)
    for text, vector in zip(texts, together, strict=True):
        assert vectors(server, text)[0] == pytest.approx(vector, abs=1e-6)


def test_base64_is_little_endian_float32(server: ModelServer) -> None:
    (plain,) = vectors(server, "hello world")
    (entry,) = post(server, "hello world", encoding_format="base64").json()["data"]
    assert list(struct.unpack("<384f", base64.b64decode(entry["embedding"]))) == pytest.approx(plain, abs=1e-7)


def test_tokens_give_the_vector_of_their_text(server: ModelServer) -> None:
    hello_world = [101, 7592, 2088, 102]
    (text,) = vectors(server, "hello world")
    assert vectors(server, hello_world) == [pytest.approx(text, abs=1e-6)]
    assert vectors(server, [hello_world, [101, 102]])[0] == pytest.approx(text, abs=1e-6)
    assert post(server, [hello_world, [101, 102]]).json()["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [True]}, "input[0]"),
        ({"input": None}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a " * 511}, "input"),
        ({"input": [5] * 513}, "input"),
        ({"input": [30522]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [10**30]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 256}, "dimensions"),
        ({"input": "a", "dimensions": "384"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "model": 5}, "model"),
        ({}, "input"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_it_refuses(server: ModelServer, fields: dict[str, Any], param: str) -> None:
    answer = server.client.post("/v1/embeddings", json={"model": "all-minilm", **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_the_whole_context_may_be_used(server: ModelServer) -> None:
    answer = post(server, "a " * 510, dimensions=384)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == 512


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model":"all-minilm","input":"\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_is_refused(server: ModelServer, body: bytes) -> None:
    assert server.client.post("/v1/embeddings", content=body).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/embeddings", b'{"model":"other","input":"a"}', 404, "model_not_found"),
        ("POST", "/v1/embeddings", b" " * (11 << 20), 413, "request_too_large"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("GET", "/v1/embeddings", b"", 405, "method_not_allowed"),
    ],
)
def test_other_refusals(server: ModelServer, method: str, path: str, body: bytes, status: int, code: str) -> None:
    answer = server.client.request(method, path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_small_request_overtakes_a_large_one(server: ModelServer) -> None:
    large = threading.Thread(target=lambda: post(server, [DOCUMENT] * 60))
    large.start()
    time.sleep(0.2)
    vectors(server, "What is the capital of France?")
    assert large.is_alive()
    large.join()


def test_a_client_that_leaves_stops_the_work(server: ModelServer) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"http://127.0.0.1:{server.port}/v1/embeddings",
            json={"model": "all-minilm", "input": [DOCUMENT] * 2000},  # three quarters of a minute, were it all done
            timeout=0.5,
        )
    started = time.monotonic()
    vectors(server, [DOCUMENT] * 4)
    assert time.monotonic() - started < 3 + HELD_UP


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_even_at_work(number: signal.Signals) -> None:
    with running(MODULE) as server:
        server.wait_until_healthy()

        def ask() -> None:
            with suppress(httpx.TransportError):
                assert post(server, [DOCUMENT] * 1000).status_code == 503

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        started = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(10) == 0
        assert time.monotonic() - started < 4 + HELD_UP
        asking.join()


def test_it_leaves_nothing_in_its_users_home(tmp_path: Path) -> None:
    """The runtime's telemetry would."""
    with running(MODULE, home=tmp_path) as server:
        server.wait_until_healthy()
        vectors(server, ["a fruit"])
    assert not list(tmp_path.rglob("*"))
