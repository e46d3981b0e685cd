"""Which figures of a server are known, and which have crossed their bounds."""

import pytest

from apps.orchestration.health.conditions import UNKNOWN, Load
from apps.orchestration.triggers import Figures, bounds, crossed, readings
from citadel.sections import ScalingSection


@pytest.mark.parametrize(
    ("load", "waiting", "queue"),
    [
        (Load(queue=3, at=5), 4, 7.0),
        (Load(queue=3, at=5), None, None),
        (Load(cpu=0.1, at=5), 4, 4.0),
        (UNKNOWN, 4, 4.0),
        (UNKNOWN, 0, 0.0),
        (Load(at=5), 4, None),
        (Load(at=5), 0, None),
    ],
)
def test_a_queue_is_what_the_server_tells_and_who_waits_in_citadel(
    load: Load, waiting: int | None, queue: float | None
) -> None:
    """Of a server that has told its load too long ago nothing is known: it is not below its bound for that."""
    now = readings("healthy", load, Figures(), waiting)
    assert now.get("queue") == queue
    _, fallen = crossed(now, bounds(ScalingSection()), frozenset({"queue"}))
    assert ("queue" in fallen) is (queue is not None)
