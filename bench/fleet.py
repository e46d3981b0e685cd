"""What a large fleet costs beside its requests: decisions and heartbeats."""

import msgspec

from bench.heartbeats import Heartbeats
from bench.routing import Decisions


class Fleet(msgspec.Struct, frozen=True):
    """What was measured of it."""

    decisions: list[Decisions] = []
    heartbeats: Heartbeats | None = None
