"""Health pages: what orchestrators of containers, load balancers and people ask. Strangers see the status alone.

Each stands under `/health` and, by its older name, under `/api/v1/health`; the short story is `/v1/health` too.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from ninja import Router

from apps.orchestration.health.conclusion import awaits_request
from apps.orchestration.health.conditions import Status
from apps.orchestration.health.parts import Part, check_all, worst
from apps.orchestration.health.report import ServerReport, Summary, reports, summary
from apps.orchestration.requests import FleetRequest, Worker
from citadel import __version__
from citadel.answer import Answer, json_answer
from citadel.description import schema
from citadel.permissions import SEE_FLEET, may

router = Router(tags=["Health"])

STARTED = time.monotonic()
PREFIXES = ("/health", "/api/v1/health")

View = Callable[[FleetRequest], Awaitable[Answer]]


class Alone(msgspec.Struct):
    """What strangers see."""

    status: str


class Ready(msgspec.Struct, omit_defaults=True):
    """Whether requests would be served; which models have no server is for those who may see the fleet."""

    status: str
    models_without_server: list[str] | None = None


class Health(msgspec.Struct, omit_defaults=True):
    """The short story."""

    status: Status
    timestamp: datetime | None = None
    version: str | None = None
    uptime: float | None = None
    services: dict[str, Status] | None = None
    servers: Summary | None = None


class Detailed(msgspec.Struct, omit_defaults=True):
    """The long one."""

    status: Status
    timestamp: datetime | None = None
    version: str | None = None
    uptime: float | None = None
    services: dict[str, Part] | None = None
    summary: Summary | None = None
    servers: list[ServerReport] | None = None


class Enterprise(msgspec.Struct, omit_defaults=True):
    """The fleet in numbers and rows."""

    cluster_status: Status
    total_servers: int | None = None
    healthy_servers: int | None = None
    degraded_servers: int | None = None
    unhealthy_servers: int | None = None
    server_details: list[ServerReport] | None = None
    last_updated: datetime | None = None


def page(name: str, answer: type[msgspec.Struct], *, refuses: bool = False, **options: Any) -> Callable[[View], View]:
    """Puts a view under both prefixes, of which the second is left out of the description."""
    content = {"application/json": {"schema": schema(answer)}}
    responses = {200: {"content": content}} | (
        {503: {"description": "Not now.", "content": content}} if refuses else {}
    )

    def put(view: View) -> View:
        for prefix in PREFIXES:
            told = {"security": [], "responses": responses}
            router.get(f"{prefix}/{name}", openapi_extra=told, include_in_schema=prefix == PREFIXES[0], **options)(view)
        return view

    return put


@page("live", Alone, auth=None)
async def live(request: FleetRequest) -> Answer:
    """200 as long as the worker's loop turns."""
    return json_answer(Alone("alive"))


@page("ready", Ready, refuses=True)
async def ready(request: FleetRequest) -> Answer:
    """200 when a request to any model that an active server holds would be served, or may bring its server back, else
    503, as by a worker that is to end. What an operator has taken out, or has not approved, is no trouble of this
    worker's.
    """
    runtime = request.runtime
    if not runtime.ready:
        return json_answer(Ready("starting"), 503)
    if runtime.draining:
        return json_answer(Ready("draining"), 503)
    if unserved := unserved_models(runtime):
        return json_answer(Ready("unhealthy", unserved if may(request.auth, SEE_FLEET) else None), 503)
    return json_answer(Ready("ready"))


@router.get("/v1/health", include_in_schema=False)
@router.get("/api/v1/health", include_in_schema=False)
@router.get("/health", include_in_schema=False)
@page("", Health, refuses=True)
async def health(request: FleetRequest) -> Answer:
    """The short story: healthy, degraded when some models have no server or some servers are out, or operators have
    taken out all, unhealthy when no model has a server nor one that a request may bring back. No calls out.

    The rest is for callers with the permission `fleet.see`, or from one of `security.metrics_networks`.
    """
    runtime = request.runtime
    status = _status(runtime)
    code = 503 if status == "unhealthy" else 200
    if not may(request.auth, SEE_FLEET):
        return json_answer(Health(status), code)
    services: dict[str, Status] = {
        "redis": "healthy" if runtime.redis_available else "unhealthy",
        "database": "healthy" if runtime.database_available else "unhealthy",
    }
    servers = summary(report(runtime))
    return json_answer(Health(status, _now(), __version__, _uptime(), services, servers), code)


@page("detailed", Detailed)
async def health_detailed(request: FleetRequest) -> Answer:
    """The inference servers and what this Citadel stands on, each asked in this moment; strangers see the status."""
    runtime = request.runtime
    if not may(request.auth, SEE_FLEET):
        return json_answer(Detailed(_status(runtime)))
    parts, servers = await check_all(runtime), await report_now(runtime)
    # What one part can't do is felt, but what can be served is what the models say.
    felt: Status = "healthy" if all(part.status == "healthy" for part in parts.values()) else "degraded"
    status = worst(_status(runtime), felt)
    return json_answer(Detailed(status, _now(), __version__, _uptime(), parts, summary(servers), servers))


@page("enterprise", Enterprise)
async def health_enterprise(request: FleetRequest) -> Answer:
    """The fleet, server by server; strangers see its status."""
    runtime = request.runtime
    if not may(request.auth, SEE_FLEET):
        return json_answer(Enterprise(summary(report(runtime)).status))
    servers = await report_now(runtime)
    found = summary(servers)
    # Of all servers, also of those that an operator has taken out, so that the numbers add up.
    counted = Counter(row.health_status for row in servers)
    numbers = (counted["healthy"], counted["degraded"], counted["unhealthy"])
    return json_answer(Enterprise(found.status, len(servers), *numbers, servers, _now()))


def report(runtime: Worker) -> list[ServerReport]:
    """The servers as this worker knows them."""
    return reports(runtime.fleet, runtime.watch.known(), runtime.standings)


async def report_now(runtime: Worker) -> list[ServerReport]:
    """The same as the board says it in this moment, where it can be asked."""
    return reports(runtime.fleet, await runtime.watch.known_now(), runtime.standings)


def unserved_models(runtime: Worker) -> list[str]:
    """Models that active servers hold, none of which is in the rotation or may be brought back by a request."""
    return [name for name, is_served in _offered(runtime).items() if not is_served]


def _offered(runtime: Worker) -> dict[str, bool]:
    """The models that active servers hold, and whether one of these servers is in the rotation, or waits for a request
    that brings it back: whoever sends none to what is unhealthy would keep it out for good.
    """
    in_rotation, known = runtime.standings.in_rotation, runtime.watch.known()

    def is_open(server_id: str) -> bool:
        return in_rotation(server_id) or awaits_request(known.record(server_id))

    active = {
        model.name: [server.server_id for server in model.servers if server.state == "active"]
        for model in runtime.fleet.models.values()
    }
    return {name: any(map(is_open, servers)) for name, servers in active.items() if servers}


def _status(runtime: Worker) -> Status:
    offered = _offered(runtime)
    if not runtime.ready or (offered and not any(offered.values())):
        return "unhealthy"
    in_rotation = runtime.standings.in_rotation
    servers = runtime.fleet.servers
    out = any(server.state == "active" and not in_rotation(name) for name, server in servers.items())
    approved = {server.state for server in servers.values()} - {"pending"}
    taken_out = bool(approved) and "active" not in approved
    return "degraded" if out or taken_out or not all(offered.values()) else "healthy"


def _now() -> datetime:
    return datetime.now(UTC)


def _uptime() -> float:
    """Of this worker, in seconds."""
    return round(time.monotonic() - STARTED, 1)
