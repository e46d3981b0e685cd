"""When there is too much to do for a server: each crossing of a bound is told once. Pure.

A figure must come down to `BACK` of its bound before it can cross it again: around the bound it would be told for ever.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from apps.orchestration.health.conditions import Load, Status
from citadel.sections import ScalingSection

BACK = 0.9
FEWEST_REQUESTS = 20
"""Of fewer, averages and shares say nothing."""


class Figures(NamedTuple):
    """A server's requests of the last minutes."""

    requests: int = 0
    failed: int = 0
    average_ms: float | None = None
    """Of those that did not fail."""


def readings(status: Status, load: Load, figures: Figures, waiting: int | None) -> dict[str, float]:
    """What can be said of a server now, by the names that the bounds have. `waiting` is who waits for it in Citadel;
    None where that was not asked, else a queue of which the server tells nothing counts as none, but for one that is
    out: its own may be as long as ever.
    """
    is_lost = status == "unhealthy" and load.queue is None
    told = {
        "cpu": load.cpu,
        "memory": load.memory,
        "queue": None if waiting is None or is_lost else (load.queue or 0) + waiting,
        "unavailable": 1.0 if status == "unhealthy" else 0.0,
    }
    if figures.requests >= FEWEST_REQUESTS:
        told |= {"response_ms": figures.average_ms, "failed": figures.failed / figures.requests}
    return {name: float(value) for name, value in told.items() if value is not None}


def bounds(scaling: ScalingSection) -> Mapping[str, float]:
    """What each reading must not be above."""
    return MappingProxyType(
        {
            "cpu": scaling.cpu,
            "memory": scaling.memory,
            "queue": scaling.queue,
            "response_ms": scaling.response_ms,
            "failed": scaling.failed,
            "unavailable": 0.5,
        }
    )


def crossed(now: Mapping[str, float], limits: Mapping[str, float], above: frozenset[str]) -> tuple[set[str], set[str]]:
    """Which figures have gone above their bounds since, and which are well below again, of those that are known."""
    risen = {name for name, value in now.items() if name not in above and value > limits[name]}
    fallen = {name for name, value in now.items() if name in above and value <= limits[name] * BACK}
    return risen, fallen
