"""How the fleet is, in rows and in numbers, as pages tell it. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from apps.orchestration.fleet import Fleet, Server
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
from apps.orchestration.health.passive import Standings

NO_TRAFFIC = "this worker's requests fail there"


class ServerReport(msgspec.Struct, frozen=True):
    """One server."""

    server_id: str
    kind: str
    state: str
    weight: int
    models: list[str]
    health_status: Status
    health_source: Finder
    health_reason: str
    latency_ms: float | None
    """How long its last probe took, where there is one that says so."""
    message: str
    """The reason, under the name that the other parts of a Citadel have for it."""
    since: str | None
    """When the status became what it is."""
    last_seen: str | None
    """When it was last heard of: as in the registry's list."""
    load_metrics: Load | None


class Summary(msgspec.Struct, frozen=True):
    """How many servers there are, by status; those that an operator has taken out apart."""

    total: int
    healthy: int
    degraded: int
    unhealthy: int
    out: int
    """Draining, disabled or pending: by an operator's word, however they are."""

    @property
    def status(self) -> Status:
        """Healthy when all are that get traffic, unhealthy when none of them could; degraded when operators have taken
        out all.
        """
        if not self.total or self.healthy == self.total - self.out > 0:
            return "healthy"
        return "degraded" if self.healthy + self.degraded or self.out == self.total else "unhealthy"


def reports(fleet: Fleet, known: Known, standings: Standings) -> list[ServerReport]:
    """A row for each server of the registry, ordered by their ids."""
    held = models_by_server(fleet)
    return [
        _report(server, _record(name, known, standings), known.loads.get(name), held.get(name, []))
        for name, server in sorted(fleet.servers.items())
    ]


def summary(rows: Iterable[ServerReport]) -> Summary:
    """The numbers of some rows."""
    rows = list(rows)
    counted = Counter(row.health_status for row in rows if row.state == "active")
    out = sum(row.state != "active" for row in rows)
    return Summary(len(rows), counted["healthy"], counted["degraded"], counted["unhealthy"], out)


def models_by_server(fleet: Fleet) -> Mapping[str, list[str]]:
    """The names of the models that each server holds."""
    held: dict[str, list[str]] = {}
    for model in fleet.models.values():
        for server in model.servers:
            held.setdefault(server.server_id, []).append(model.name)
    return held


def _record(server_id: str, known: Known, standings: Standings) -> Record:
    """What the board says, unless this worker's own requests say worse."""
    record = known.record(server_id)
    if record.status != "unhealthy" and not standings.in_rotation(server_id):
        return msgspec.structs.replace(record, status="unhealthy", source="traffic", reason=NO_TRAFFIC)
    return record


def _report(server: Server, record: Record, load: Load | None, models: list[str]) -> ServerReport:
    return ServerReport(
        server.server_id,
        server.kind,
        server.state,
        server.weight,
        models,
        record.status,
        record.finder,
        record.reason,
        response_ms(record),
        record.reason,
        moment(record.since),
        moment(last_seen(record, load or Load())),
        load,
    )
