"""Which figures of a server are known, and which have crossed their bounds."""

import pytest

from apps.orchestration.health.conditions import UNKNOWN, Load, Status
from apps.orchestration.triggers import Figures, bounds, crossed, readings
from citadel.sections import ScalingSection


@pytest.mark.parametrize(
    ("status", "load", "waiting", "queue"),
    [
        ("healthy", Load(queue=3, at=5), 4, 7.0),
        ("healthy", Load(queue=3, at=5), None, None),
        ("healthy", Load(cpu=0.1, at=5), 4, 4.0),
        ("healthy", UNKNOWN, 0, 0.0),
        ("unhealthy", Load(queue=3, at=5), 4, 7.0),
        ("unhealthy", Load(models=("m",), at=5), 4, None),
        ("unhealthy", UNKNOWN, 0, None),
    ],
)
def test_a_queue_is_what_the_server_tells_and_who_waits_in_citadel(
    status: Status, load: Load, waiting: int | None, queue: float | None
) -> None:
    """Of a server that has departed nothing is known: it is not below its bound for that."""
    now = readings(status, load, Figures(), waiting)
    assert now.get("queue") == queue
    _, fallen = crossed(now, bounds(ScalingSection()), frozenset({"queue"}))
    assert ("queue" in fallen) is (queue is not None)
