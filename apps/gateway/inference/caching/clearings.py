"""What was cleared from the cache, as each worker knows it: a part of the fingerprint of every entry.

Nothing is searched for and deleted: after a clearing requests have other fingerprints, in every worker as soon as it
has heard of it, and the old entries make room by their age. Who has never cleared anything pays nothing.
"""

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

from apps.gateway.models import Clearing
from citadel.database import Pool

KEPT = timedelta(days=30)
"""For which a clearing is remembered, longer than any entry should live."""

_cleared: Mapping[tuple[str, str], int] = {}


def since(team: str, model: str) -> tuple[int, ...]:
    """What tells a team's entries of a model from those before the last clearing; empty where there was none."""
    if not _cleared:
        return ()
    at = _cleared.get
    found = (at(("", ""), 0), at((team, ""), 0), at(("", model), 0), at((team, model), 0))
    return found if any(found) else ()


async def load(pool: Pool) -> None:
    """Takes over what was cleared until now."""
    global _cleared  # noqa: PLW0603  # this worker's copy, as the fleet's is, of what is asked for by a plain function
    async with pool.connection() as connection:
        rows = await (await connection.execute("SELECT team, model, number FROM gateway_clearing")).fetchall()
    _cleared = {(team, model): number for team, model, number in rows}


def clear(team: str, models: Iterable[str]) -> None:
    """Clears what a team (empty: every one) has of some models (an empty name: of all)."""
    now = time.time_ns() // 1000
    rows = [Clearing(team=team, model=model, number=now) for model in models]
    Clearing.objects.filter(number__lt=now - KEPT // timedelta(microseconds=1)).delete()
    Clearing.objects.bulk_create(rows, update_conflicts=True, unique_fields=["team", "model"], update_fields=["number"])
