"""What a server says about itself: health, models, properties, metrics."""

from __future__ import annotations

from typing import Any

from ..answer import Answer
from .config import Backend

_OWNERS = {"llamacpp": "llamacpp", "ollama": "library", "vllm": "vllm", "openai": "system"}


def health(backend: Backend) -> Answer:
    """``/health``: JSON on llama.cpp, an empty 200 on vLLM."""
    if backend.kind == "vllm":
        return Answer.of_text("")
    return Answer.of_json({"status": "ok"})


def models(backend: Backend) -> Answer:
    """``/v1/models``."""
    return Answer.of_json({"object": "list", "data": [model(backend, name) for name in backend.models]})


def model(backend: Backend, name: str) -> dict[str, Any]:
    """One entry of the model list, with what each kind adds to it."""
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(backend.started),
        "owned_by": _OWNERS[backend.kind],
    }
    if backend.kind == "vllm":
        entry |= {"root": name, "parent": None, "max_model_len": backend.context_length, "permission": []}
    if backend.kind == "llamacpp":
        entry["meta"] = {"n_ctx_train": backend.context_length, "n_embd": backend.dimensions, "n_params": 134515008}
    return entry


def props(backend: Backend) -> Answer:
    """llama.cpp's ``/props``."""
    settings = {"n_ctx": backend.context_length, "params": {"temperature": 0.8}}
    return Answer.of_json(
        {
            "default_generation_settings": settings,
            "total_slots": _slots(backend),
            "model_path": f"{backend.models[0]}.gguf",
            "model_alias": backend.models[0],
            "chat_template": "{{ messages }}",
            "build_info": "b6000-fleet",
        }
    )


def slots(backend: Backend) -> Answer:
    """llama.cpp's ``/slots``: which of them work now."""
    entries = [
        {"id": number, "n_ctx": backend.context_length, "is_processing": number < backend.busy}
        for number in range(_slots(backend))
    ]
    return Answer.of_json(entries)


def _slots(backend: Backend) -> int:
    return backend.parallel or 4


def version(backend: Backend) -> Answer:
    """``/version`` of vLLM, ``/api/version`` of Ollama."""
    return Answer.of_json({"version": "0.12.6" if backend.kind == "ollama" else "0.11.0"})


def metrics(backend: Backend) -> Answer:
    """``/metrics`` in Prometheus's text format, with the names of llama.cpp or vLLM."""
    waiting = max(0, backend.busy - backend.parallel) if backend.parallel else 0
    working = backend.busy - waiting
    if backend.kind == "llamacpp":
        values = {
            "llamacpp:requests_processing": ("gauge", working),
            "llamacpp:requests_deferred": ("gauge", waiting),
            "llamacpp:tokens_predicted_total": ("counter", backend.tokens_out),
        }
        labels = ""
    else:
        values = {
            "vllm:num_requests_running": ("gauge", working),
            "vllm:num_requests_waiting": ("gauge", waiting),
            "vllm:request_success_total": ("counter", backend.answered),
            "vllm:generation_tokens_total": ("counter", backend.tokens_out),
        }
        labels = f'{{model_name="{backend.models[0]}"}}'
    lines = [f"# TYPE {name} {kind}\n{name}{labels} {value}\n" for name, (kind, value) in values.items()]
    return Answer.of_text("".join(lines), content_type="text/plain; version=0.0.4; charset=utf-8")
