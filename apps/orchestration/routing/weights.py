"""A server's weight at a moment: the given one, times factors that are exactly 1 while the server is well. Pure.

In hundredths, as whole numbers, so that equal servers have equal weights and shares stay exact.
"""

from typing import TYPE_CHECKING

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import Load
from apps.orchestration.health.pace import Key, Pace

if TYPE_CHECKING:
    from apps.orchestration.routing.plan import Sight

WHOLE = 100
FIRST_SHARE = 0.1
"""Of its weight, with which a server begins that was out."""
STEPS = 20
"""In which that grows to the whole."""
BUSY = 0.80
"""Share of CPU, memory or places from which on a server gets less."""
DEGRADED = 0.5
RESERVED = 0.5
"""Of its weight, that a server has for models that are not of the class whose own it is."""
SLOW_RATIO = 3.0
"""Times the fastest server's median from which on a server is slow."""
NEVER_SLOW = 0.1
"""Seconds under which nobody is, whatever others need."""
LEAST = 0.1


def weigh(model: Model, server: Server, sight: "Sight", streams: bool, fastest: float | None) -> int:
    """The weight of a server for requests to a model, at least 1. `fastest` is what `find_fastest` gives."""
    whole, factor = _given(model, server) * WHOLE, 1.0
    if record := sight.records.get(server.server_id):
        if record.status == "degraded":
            factor = DEGRADED
        if record.returned:
            factor *= _started(record.returned, sight)
    if load := sight.loads.get(server.server_id):
        factor *= _unloaded(server, load)
    if server.server_id in model.reserved:
        factor *= RESERVED
    if fastest is not None:
        factor *= _fast(sight.paces.find(Key(model.name, server.server_id, streams)), fastest)
    return whole if factor == 1.0 else max(1, round(whole * factor))


def find_fastest(model: Model, sight: "Sight", streams: bool) -> float | None:
    """Seconds in which the fastest server of a model gives half of its answers; None where nobody can be compared."""
    if len(model.servers) == 1:
        return None
    paces = (sight.paces.find(Key(model.name, server.server_id, streams)) for server in model.servers)
    medians = [median for pace in paces if pace is not None and (median := pace.quantile(0.5)) is not None]
    return min(medians, default=None)


def _given(model: Model, server: Server) -> int:
    model_class = model.model_class
    if model_class and model_class.shares:
        return model_class.shares.get(server.server_id, 1)
    return server.weight


def _started(returned: int, sight: "Sight") -> float:
    """Slow start: in even steps from a tenth to the whole."""
    elapsed = sight.now * 1000 + sight.clock_ms - returned
    if elapsed >= sight.slow_start * 1000:
        return 1.0
    step = int(max(0.0, elapsed) / (sight.slow_start * 1000) * STEPS)
    return FIRST_SHARE + (1 - FIRST_SHARE) * step / STEPS


def _unloaded(server: Server, load: Load) -> float:
    """1 up to `BUSY`, then down to a tenth at full load; a queue halves."""
    places = (load.in_flight or 0) / server.max_concurrent if server.max_concurrent else 0.0
    busiest = max(load.cpu or 0.0, load.memory or 0.0, places)
    factor = 1.0 if busiest <= BUSY else max(LEAST, (1 - min(busiest, 1.0)) / (1 - BUSY))
    return factor * (0.5 if load.queue else 1.0)


def _fast(pace: Pace | None, fastest: float) -> float:
    """1 unless a server takes several times as long as the fastest for the same model."""
    median = pace.quantile(0.5) if pace else None
    if median is None or median <= NEVER_SLOW:
        return 1.0
    slowness = median / max(fastest, NEVER_SLOW / SLOW_RATIO)
    return 1.0 if slowness <= SLOW_RATIO else max(LEAST, SLOW_RATIO / slowness)
