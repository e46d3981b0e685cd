"""The servers as the API shows them: the registry's rows, and how the board says that they are."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from msgspec import Struct

from apps.orchestration.health.conditions import (
    Finder,
    Known,
    Load,
    Record,
    Status,
    last_seen,
    response_ms,
)
from apps.orchestration.health.moments import moment


class LoadShown(Struct):
    """What a server has to do, as far as it is known; shares from 0 to 1."""

    cpu: float | None
    memory: float | None
    gpu: float | None
    in_flight: int | None
    queue: int | None


class Listed(Struct):
    """A server of the fleet. `health_source` says who found its status, `last_seen` when it was last heard of."""

    server_id: str
    hostname: str
    port: int
    url: str
    role: str
    kind: str | None
    models: list[str]
    services: list[str] | dict[str, Any]
    capabilities: list[str] | dict[str, Any]
    weight: int
    state: str
    health_status: Status
    health_source: Finder
    health_reason: str
    last_seen: str | None
    consecutive_failures: int
    consecutive_successes: int
    load_metrics: LoadShown


class ServerList(Struct):
    """The fleet."""

    total_servers: int
    servers: dict[str, Listed]
    last_updated: str


class ServerHealth(Struct):
    """How one server is."""

    server_id: str
    status: Status
    source: Finder
    reason: str
    state: str
    last_seen: str | None
    consecutive_failures: int
    consecutive_successes: int
    response_time_ms: float | None
    load_metrics: LoadShown


class Row(Struct):
    """A server as the registry has it."""

    server_id: str
    hostname: str
    port: int
    url: str
    role: str
    kind: str
    models: list[str]
    services: list[str] | dict[str, Any]
    capabilities: list[str] | dict[str, Any]
    weight: int
    state: str


def whole(rows: Iterable[Row], known: Known, now: datetime) -> ServerList:
    """All of them."""
    servers = {row.server_id: listed(row, known) for row in rows}
    return ServerList(len(servers), servers, now.isoformat())


def listed(row: Row, known: Known) -> Listed:
    """One of them."""
    record, load = known.record(row.server_id), known.load(row.server_id)
    return Listed(
        row.server_id,
        row.hostname,
        row.port,
        row.url,
        row.role,
        row.kind or None,
        row.models,
        row.services,
        row.capabilities,
        row.weight,
        row.state,
        record.status,
        record.finder,
        record.reason,
        moment(last_seen(record, load)),
        *_in_a_row(record),
        _shown(load),
    )


def health_of(row: Row, known: Known) -> ServerHealth:
    """How one of them is."""
    record, load = known.record(row.server_id), known.load(row.server_id)
    return ServerHealth(
        row.server_id,
        record.status,
        record.finder,
        record.reason,
        row.state,
        moment(last_seen(record, load)),
        *_in_a_row(record),
        response_ms(record),
        _shown(load),
    )


def _in_a_row(record: Record) -> tuple[int, int]:
    memory = record.memory("probe")
    return int(memory.get("consecutive_failures") or 0), int(memory.get("consecutive_successes") or 0)


def _shown(load: Load) -> LoadShown:
    return LoadShown(load.cpu, load.memory, load.gpu, load.in_flight, load.queue)
