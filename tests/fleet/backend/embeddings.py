"""``POST /v1/embeddings``: vectors of length 1 that depend on the input alone."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from ..answer import Answer
from .chat import envelope
from .config import Backend
from .text import count_tokens, unit_vector

MOST_DIMENSIONS = 65536


def embed(backend: Backend, body: dict[str, Any]) -> Answer:
    """One vector for each input: a string, strings, a token list or token lists; floats or base64."""
    inputs = inputs_of(body.get("input", ""))
    dimensions = body.get("dimensions") or backend.dimensions
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"vectors have at most {MOST_DIMENSIONS} dimensions")
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.get("encoding_format"))}
        for index, vector in enumerate(vectors(inputs, dimensions))
    ]
    used = sum(count_tokens(member) for member in inputs)
    answer = {
        "object": "list",
        "data": data,
        "model": body.get("model", backend.models[0]),
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    if body.get("x_echo") is True:
        answer["x_echo"] = body
    if backend.kind == "vllm":
        answer = envelope(backend, body, "embd", "list") | answer
    return Answer.of_json(answer)


def inputs_of(value: Any) -> list[Any]:
    """The inputs as a list; a list of numbers is one input."""
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return value
    return [value]


def vectors(inputs: list[Any], dimensions: int) -> list[tuple[float, ...]]:
    """A unit vector for each input."""
    texts = [member if isinstance(member, str) else msgspec.json.encode(member).decode() for member in inputs]
    return [unit_vector(text, dimensions) for text in texts]


def _written(vector: Sequence[float], encoding: str | None) -> Any:
    """Floats as they are, or little-endian 32-bit floats in base64."""
    if encoding != "base64":
        return vector
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
