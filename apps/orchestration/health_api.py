"""Health pages: what orchestrators of containers and load balancers ask. Strangers see the status alone."""

from typing import Protocol

import msgspec
from ninja import Router

from apps.orchestration.fleet import Fleet
from apps.orchestration.health.passive import Standings
from citadel.answer import JSON, Answer

router = Router(tags=["Health"], auth=None)

_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
_CONTENT = {"application/json": {"schema": _STATUS}}
_OK = {200: {"content": _CONTENT}}
_NOT_OK = {503: {"description": "Not now.", "content": _CONTENT}}


class Condition(Protocol):
    """What a worker knows of itself."""

    ready: bool
    fleet: Fleet
    standings: Standings


class HealthRequest(Protocol):
    """A request on the lean path."""

    runtime: Condition


@router.get("/live", openapi_extra={"security": [], "responses": _OK})
async def live(request: HealthRequest) -> Answer:
    """200 as long as the worker's loop turns."""
    return _status(200, "alive")


@router.get("/ready", openapi_extra={"security": [], "responses": {**_OK, **_NOT_OK}})
async def ready(request: HealthRequest) -> Answer:
    """200 when a request to any registered model would be served, else 503."""
    runtime = request.runtime
    if not runtime.ready:
        return _status(503, "starting")
    if unserved_models(runtime):
        return _status(503, "unhealthy")
    return _status(200, "ready")


@router.get("", include_in_schema=False)
@router.get("/", openapi_extra={"security": [], "responses": {**_OK, **_NOT_OK}})
async def health(request: HealthRequest) -> Answer:
    """The short story: healthy, degraded when some models have no server, unhealthy when none has. No calls out."""
    runtime = request.runtime
    unserved = len(unserved_models(runtime))
    everything = len(runtime.fleet.models)
    status = "healthy" if not unserved else "degraded" if unserved < everything else "unhealthy"
    if not runtime.ready:
        status = "unhealthy"
    return _status(503 if status == "unhealthy" else 200, status)


def unserved_models(condition: Condition) -> list[str]:
    """Models of which no active server is in the rotation."""
    in_rotation = condition.standings.in_rotation
    return [
        model.name
        for model in condition.fleet.models.values()
        if not any(server.state == "active" and in_rotation(server.server_id) for server in model.servers)
    ]


def _status(code: int, status: str) -> Answer:
    return Answer(msgspec.json.encode({"status": status}), status=code, headers=[JSON, (b"cache-control", b"no-store")])
