"""A change of a server's status is told by whoever brought it about."""

import psycopg
import structlog

from apps.orchestration import events
from apps.orchestration.health.board import Change
from apps.orchestration.messages import HealthChanged
from citadel.database import Pool

log = structlog.get_logger("citadel.changes")


async def tell_change(pool: Pool, server_id: str, change: Change) -> None:
    """Raises `health_status_changed` where a status has changed; a database that is away is only logged."""
    if not change.changed:
        return
    record = change.record
    told = HealthChanged(change.before, record.status, record.source, record.reason)
    try:
        await events.tell(pool, server_id, told)
    except (psycopg.Error, OSError, TimeoutError) as error:
        log.error("event_lost", type=told.event, server=server_id, status=record.status, why=type(error).__name__)
