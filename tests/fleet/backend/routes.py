"""Which path of which kind is answered by what, and the refusals that a healthy server has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..answer import Answer, Cue, Place, Point, Wait
from ..request import Request
from . import ollama, pages
from .chat import chat
from .completions import complete
from .config import Ability, Backend, Kind
from .embeddings import embed
from .errors import Problem, Shape, error_answer
from .text import count_tokens

Inference = Callable[[Backend, dict[str, Any]], Answer]
Page = Callable[[Backend], Answer]

INFERENCE: dict[str, tuple[Ability, Inference]] = {
    "/v1/chat/completions": ("chat", chat),
    "/v1/completions": ("chat", complete),
    "/v1/embeddings": ("embeddings", embed),
}
OLLAMA_INFERENCE: dict[str, tuple[Ability, Inference]] = {
    "/api/chat": ("chat", ollama.chat),
    "/api/generate": ("chat", ollama.generate_text),
    "/api/embed": ("embeddings", ollama.embed),
}
PAGES: dict[str, Page] = {"/v1/models": pages.models, "/health": pages.health}
PAGES_OF: dict[Kind, dict[str, Page]] = {
    "openai": {},
    "llamacpp": {"/props": pages.props, "/slots": pages.slots, "/metrics": pages.metrics},
    "vllm": {"/version": pages.version, "/metrics": pages.metrics},
    "ollama": {
        "/api/tags": ollama.tags,
        "/api/ps": ollama.running,
        "/api/version": pages.version,
        "/": lambda _: Answer.of_text("Ollama is running"),
    },
}


def is_inference(request: Request) -> bool:
    """Whether the request makes a model work; the default behaviours touch only these."""
    return request.method == "POST" and (request.path in INFERENCE or request.path in OLLAMA_INFERENCE)


def shape_of(backend: Backend, path: str) -> Shape:
    """The form in which this backend writes errors on this path."""
    return "ollama_native" if path.startswith("/api/") else backend.kind


def respond(backend: Backend, request: Request) -> Answer:
    """What the healthy backend answers."""
    if backend.api_key and request.path != "/health" and not _has_key(backend, request):
        return _error(backend, request, "auth")
    if request.method in ("GET", "HEAD"):
        return _page(backend, request)
    routes = INFERENCE | OLLAMA_INFERENCE if backend.kind == "ollama" else INFERENCE
    if request.method == "POST" and request.path in routes:
        return _infer(backend, request, *routes[request.path])
    if backend.kind == "ollama" and (request.method, request.path) == ("POST", "/api/show"):
        return _show(backend, request)
    return _no_such_path()


def _no_such_path() -> Answer:
    return Answer.of_json({"error": {"message": "Not Found", "type": "not_found_error", "code": 404}}, 404)


def _has_key(backend: Backend, request: Request) -> bool:
    return request.headers.get("authorization") == f"Bearer {backend.api_key}"


def _error(backend: Backend, request: Request, problem: Problem, **facts: Any) -> Answer:
    return error_answer(shape_of(backend, request.path), problem, facts=facts)


def _page(backend: Backend, request: Request) -> Answer:
    if request.path.startswith("/v1/models/"):
        name = request.path.removeprefix("/v1/models/")
        known = name in backend.models
        return Answer.of_json(pages.model(backend, name)) if known else _error(backend, request, "model", model=name)
    page = PAGES_OF[backend.kind].get(request.path)
    if page is None and not (backend.kind == "ollama" and request.path == "/health"):  # Ollama has no health page
        page = PAGES.get(request.path)
    return page(backend) if page else _no_such_path()


def _show(backend: Backend, request: Request) -> Answer:
    body = request.json()
    name = str(body.get("model") or body.get("name"))
    return ollama.show(backend, body) if backend.knows(name) else _error(backend, request, "model", model=name)


def _object(request: Request) -> dict[str, Any] | None:
    try:
        body = request.json()
    except msgspec.DecodeError:
        return None
    return body if isinstance(body, dict) else None


def _infer(backend: Backend, request: Request, ability: Ability, inference: Inference) -> Answer:
    body = _object(request)
    if body is None:
        return _error(backend, request, "blame")
    model = str(body.get("model") or backend.models[0])
    if not backend.knows(model):
        return _error(backend, request, "model", model=model)
    if ability not in backend.abilities:
        return _error(backend, request, "unsupported", model=model)
    used = max(count_tokens(body.get(name)) for name in ("messages", "prompt", "input"))
    if used > backend.context_length and backend.kind != "ollama":  # which silently cuts the prompt
        return _error(backend, request, "context", limit=backend.context_length, used=used)
    delay = backend.load(model)
    try:
        answer = inference(backend, body)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # a tool, a schema, a size of no sense
        return _error(backend, request, "blame")
    if delay:
        answer.cues.append(Cue(Point(Place.REQUEST), Wait(delay)))
    return answer
