"""The `/v1` endpoints: views that parse nothing themselves, call the pipeline and give back what it gives."""

import time
from collections.abc import Awaitable
from functools import partial
from typing import Any

import msgspec
from ninja import Router

from apps.gateway.inference.doors import CHAT, COMPLETIONS, EMBEDDINGS, Door
from apps.gateway.inference.names import usable
from apps.gateway.limits.admission import UNLIMITED
from apps.gateway.openai.answers import Model as ModelRow
from apps.gateway.openai.answers import ModelList
from apps.gateway.openai.description import described
from apps.gateway.requests import GatewayRequest
from apps.orchestration.fleet import Model
from citadel import hop
from citadel.answer import JSON, Answer, StreamAnswer
from citadel.caller import Caller
from citadel.description import answers
from citadel.errors import NotFound
from citadel.permissions import USE_MODELS, require

router = Router(tags=["OpenAI"])
_NO_SERVER = [(b"x-citadel-cache", b"hit"), (b"x-citadel-attempts", b"0")]


@router.post("/chat/completions", openapi_extra=described(CHAT))
async def chat_completions(request: GatewayRequest) -> Answer | StreamAnswer:
    """A model's answer to a conversation, whole or as a stream."""
    return await enter(CHAT, request)


@router.post("/completions", openapi_extra=described(COMPLETIONS))
async def completions(request: GatewayRequest) -> Answer | StreamAnswer:
    """A model's continuation of a text, whole or as a stream."""
    return await enter(COMPLETIONS, request)


@router.post("/embeddings", openapi_extra=described(EMBEDDINGS))
async def embeddings(request: GatewayRequest) -> Answer | StreamAnswer:
    """The vectors of texts or token arrays."""
    return await enter(EMBEDDINGS, request)


def enter(door: Door, request: GatewayRequest) -> Awaitable[Answer | StreamAnswer]:
    """The answer to a request through `door`; raises CitadelError, at once or when it is awaited."""
    caller: Caller = request.auth
    require(caller, USE_MODELS)
    headers, identity = request.raw_headers, request.identity
    return request.pipeline.answer(door, caller, request.body, headers, identity, request.nonce)


DOORS = {door.path: partial(enter, door) for door in (CHAT, COMPLETIONS, EMBEDDINGS)}
"""What the views do that nearly all traffic goes to, by their addresses."""


@router.get("/models", openapi_extra=answers(ModelList))
async def models(request: GatewayRequest) -> Answer:
    """All models of all servers, once each, that the caller may use."""
    started, fleet, caller = time.monotonic(), request.pipeline.fleet, request.auth
    require(caller, USE_MODELS)
    mark = _mark_for(request)
    rows = [_row(name, model, mark) for name, model in usable(fleet, caller).items()]
    return _known({"object": "list", "data": rows}, started)


@router.get("/models/{path:model_id}", openapi_extra=answers(ModelRow, NotFound))
async def model(request: GatewayRequest, model_id: str) -> Answer:
    """One model."""
    started = time.monotonic()
    require(request.auth, USE_MODELS)
    found = request.pipeline.find_model(model_id, request.auth)
    return _known(_row(model_id, found, _mark_for(request)), started)


def _known(content: dict[str, Any], started: float) -> Answer:
    """An answer out of what this worker knows: no server is asked, no limit counts it."""
    took = (b"openai-processing-ms", b"%d" % ((time.monotonic() - started) * 1000))
    return Answer(msgspec.json.encode(content), headers=[JSON, *_NO_SERVER, took, *UNLIMITED])


def _mark_for(request: GatewayRequest) -> str:
    """This Citadel's own mark where another Citadel asks, which comes with its own; clients have no use for it."""
    return hop.mark(request.runtime.config.secret) if hop.VIA in request.raw_headers else ""


def _row(name: str, model: Model, mark: str) -> dict[str, Any]:
    details: dict[str, Any] = {"servers": [server.server_id for server in model.servers]}
    if model.context_length:
        details["context_length"] = model.context_length
    if capabilities := model.capabilities:
        details["capabilities"] = sorted(capabilities)
    if model.model_class:
        details["class"] = model.model_class.name
    if name != model.name:
        details["alias_of"] = model.name
    if mark:
        details["through"] = hop.ways_by(mark, model.ways)
    return {"id": name, "object": "model", "created": 0, "owned_by": model.owned_by, "citadel": details}
