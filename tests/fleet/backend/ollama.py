"""Ollama's native API (docs/api.md of Ollama): what ``/v1`` does not offer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from ..answer import Answer, Event, Lines, Part
from .config import Backend
from .embeddings import inputs_of, vectors
from .generation import Generation, generate
from .text import count_tokens, seed_of

GIGABYTE = 1 << 30
KEEP_ALIVE = 300  # seconds that a model stays in memory
TRAINED = 131_072  # tokens, of which a model gets fewer: the num_ctx of its Modelfile


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _model(backend: Backend, name: str) -> dict[str, Any]:
    family = "bert" if "embed" in name else "llama"
    details = {"format": "gguf", "family": family, "families": [family], "parameter_size": "1B"}
    return {
        "name": name,
        "model": name,
        "size": GIGABYTE,
        "digest": f"{seed_of(name):064x}",
        "details": {"parent_model": "", **details, "quantization_level": "Q4_K_M"},
    }


def tags(backend: Backend) -> Answer:
    """All models on disk."""
    stamp = {"modified_at": _stamp(backend.started)}
    models = [_model(backend, backend.own_name(name)) | stamp for name in backend.models]
    return Answer.of_json({"models": models})


def running(backend: Backend) -> Answer:
    """``/api/ps``: the models in memory."""
    models = [
        _model(backend, name)
        | {"expires_at": _stamp(since + KEEP_ALIVE), "size_vram": GIGABYTE, "context_length": backend.context_length}
        for name, since in backend.loaded.items()
    ]
    return Answer.of_json({"models": models})


def show(backend: Backend, body: dict[str, Any]) -> Answer:
    """Details of one model, its capabilities among them."""
    name = body.get("model") or body.get("name") or backend.models[0]
    model = _model(backend, name)
    family = model["details"]["family"]
    info = {
        "general.architecture": family,
        f"{family}.context_length": TRAINED,
        f"{family}.embedding_length": backend.dimensions,
    }
    capabilities = ["embedding"] if family == "bert" else ["completion", "tools"]
    parameters = f'{"num_ctx":<30} {backend.context_length}\n{"stop":<30} "<|eot_id|>"'
    texts = {"modelfile": "", "template": "", "parameters": parameters}
    return Answer.of_json(texts | {"details": model["details"], "model_info": info, "capabilities": capabilities})


def embed(backend: Backend, body: dict[str, Any]) -> Answer:
    """``/api/embed``: a vector for each input."""
    inputs = inputs_of(body.get("input", ""))
    return Answer.of_json(
        {
            "model": body.get("model"),
            "embeddings": vectors(inputs, body.get("dimensions") or backend.dimensions),
            "total_duration": 14143917,
            "load_duration": 1019500,
            "prompt_eval_count": sum(count_tokens(member) for member in inputs),
        }
    )


def chat(backend: Backend, body: dict[str, Any]) -> Answer:
    """``/api/chat``; without messages it loads or (``keep_alive`` 0) unloads the model."""
    if not body.get("messages"):
        return _load(backend, body, {"message": {"role": "assistant", "content": ""}})
    choice = generate(_options(body), body["messages"], backend.tokens)
    return _answer(backend, body, choice, body["messages"], chat_form=True)


def generate_text(backend: Backend, body: dict[str, Any]) -> Answer:
    """``/api/generate``; without a prompt it loads or (``keep_alive`` 0) unloads the model."""
    if not body.get("prompt"):
        return _load(backend, body, {"response": ""})
    choice = generate(_options(body), body["prompt"], backend.tokens)
    return _answer(backend, body, choice, body["prompt"], chat_form=False)


def _options(body: dict[str, Any]) -> dict[str, Any]:
    """Ollama's options under OpenAI's names."""
    options = body.get("options") or {}
    return body | {"max_tokens": options.get("num_predict"), "stop": options.get("stop"), "seed": options.get("seed")}


def _load(backend: Backend, body: dict[str, Any], content: dict[str, Any]) -> Answer:
    reason = "load"
    if body.get("keep_alive") in (0, "0", "0s"):
        backend.loaded.pop(backend.own_name(str(body.get("model"))), None)
        reason = "unload"
    stamp = {"model": body.get("model"), "created_at": _stamp(time.time())}
    return Answer.of_json(stamp | content | {"done_reason": reason, "done": True})


def _answer(backend: Backend, body: dict[str, Any], choice: Generation, prompt: Any, chat_form: bool) -> Answer:
    backend.tokens_out += len(choice.tokens)
    if body.get("stream", True):
        lines = Lines(ndjson=True)
        events = _events(body, choice, prompt, chat_form)
        return Answer(headers={"content-type": "application/x-ndjson"}, events=events, lines=lines)
    return Answer.of_json(_piece(body, choice.text, chat_form) | _last(choice, prompt))


def _events(body: dict[str, Any], choice: Generation, prompt: Any, chat_form: bool) -> Iterator[Event]:
    for token in choice.tokens:
        yield Event(_piece(body, token, chat_form) | {"done": False})
    yield Event(_piece(body, "", chat_form) | _last(choice, prompt), Part.FINISH)


def _piece(body: dict[str, Any], text: str, chat_form: bool) -> dict[str, Any]:
    content = {"message": {"role": "assistant", "content": text}} if chat_form else {"response": text}
    return {"model": body.get("model"), "created_at": _stamp(time.time()), **content}


def _last(choice: Generation, prompt: Any) -> dict[str, Any]:
    reason = "length" if choice.finish == "length" else "stop"
    counts = {"prompt_eval_count": count_tokens(prompt), "eval_count": len(choice.tokens)}
    return {"done_reason": reason, "done": True, "total_duration": 1_000_000, "eval_duration": 900_000, **counts}
