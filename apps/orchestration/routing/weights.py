"""A server's weight at a moment: the given one, times factors that are exactly 1 while the server is well. Pure.

In hundredths, as whole numbers, so that equal servers have equal weights and shares stay exact.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import AHEAD_MS, Load, Record, Records
from apps.orchestration.health.states import CRITICAL

if TYPE_CHECKING:
    from apps.orchestration.routing.plan import Sight
    from apps.orchestration.routing.strategies import Tier

WHOLE = 100
FIRST_SHARE = 0.1
"""Of its weight, with which a server begins that was out."""
STEPS = 20
"""In which that grows to the whole."""
BUSY = 0.80
"""Share of CPU, memory or places from which on a server gets less."""
DEGRADED = 0.5
CRITICALLY_SLOW = 0.1
"""As `DEGRADED`, for a server whose probes take longer than `health.critical_ms`."""
RESERVED = 0.5
"""Of its weight, that a server has for models that are not of the class whose own it is."""
SLOW_RATIO = 3.0
"""Times the fastest server's median from which on a server is slow."""
NEVER_SLOW = 0.1
"""Seconds under which nobody is, whatever others need."""
LEAST = 0.1
HEDGED = 0.6
"""Of the budget for backup requests, which the slow servers of a class with such may have together of its requests."""


def weigh(model: Model, servers: Sequence[Server], sight: "Sight", slow: Mapping[str, float]) -> list[int]:
    """The weight of each of these servers for requests to a model, at least 1; `slow` as `slowness` gives it."""
    given, known, own = _given(model, servers), sight.factors, _own_factors(model, slow)
    weights = []
    for server, whole in zip(servers, given, strict=True):
        name = server.server_id
        factor = known.get(name)
        if factor is None:
            factor = known[name] = _factor(server, sight)
        if name in own:
            factor *= own[name]
        weights.append(whole * WHOLE if factor == 1.0 else max(1, round(whole * WHOLE * factor)))
    return weights


def spare(model: Model, tier: "Tier", sight: "Sight", streams: bool, slow: Mapping[str, float]) -> "Tier":
    """A tier in which slow servers have no more than there are backup requests for, where the model has such.

    The slower one is, up to twice as slow as one may be, the more of its weight is taken; the others get no more than
    twice what they would have.
    """
    if not (slow and sight.hedge_budget) or len(tier) < 2:
        return tier
    if model.model_class is None or model.model_class.hedge_ms is None:
        return tier
    lame = [_lame(model, server.server_id, slow, sight, streams) for server, _ in tier]
    whole = sum([weight for _, weight in tier])
    theirs = sum([weight * much for (_, weight), much in zip(tier, lame, strict=True)])
    share = HEDGED * sight.hedge_budget
    left = max((whole - theirs) * share / (1 - share), theirs - whole / 2)
    if not 0 < left < theirs:
        return tier
    taken = 1 - left / theirs
    return tuple(
        [
            (server, max(1, round(weight * (1 - much * taken))))
            for (server, weight), much in zip(tier, lame, strict=True)
        ]
    )


def _lame(model: Model, name: str, slow: Mapping[str, float], sight: "Sight", streams: bool) -> float:
    """How much of a slow server a server is, from 0 to 1 at twice the time from which on one is slow; 0 where no backup
    request would be made for it.
    """
    if name not in slow:
        return 0.0
    median = sight.paces.of(model.name, streams)[name].median or 0.0
    hedge_ms = (model.model_class.hedge_ms if model.model_class else 0) or 0
    return min(1.0, 1 / slow[name] - 1) if median * 1000 > hedge_ms else 0.0


def lasting(model: Model, servers: Sequence[Server], records: Records) -> list[float]:
    """The weights but for what passes by itself: a slow start, load, a slow spell."""
    return [
        given * _of_health(server, records) * (RESERVED if server.server_id in model.reserved else 1.0)
        for server, given in zip(servers, _given(model, servers), strict=True)
    ]


def _of_health(server: Server, records: Records) -> float:
    record = records.get(server.server_id)
    return _of_record(record) if record else 1.0


def _of_record(record: Record) -> float:
    if record.status != "degraded":
        return 1.0
    return CRITICALLY_SLOW if record.memory("probe").get("reason") == CRITICAL else DEGRADED


def _given(model: Model, servers: Sequence[Server]) -> list[int]:
    model_class = model.model_class
    if model_class and model_class.shares:
        return [model_class.shares.get(server.server_id, 1) for server in servers]
    return [server.weight for server in servers]


def _factor(server: Server, sight: "Sight") -> float:
    """What a server's weight is multiplied by for all models alike."""
    factor = 1.0
    if record := sight.records.get(server.server_id):
        factor = _of_record(record)
        if record.returned:
            factor *= started(record, sight)
    if load := sight.loads.get(server.server_id):
        factor *= _unloaded(server, load)
    return factor


def _own_factors(model: Model, slow: Mapping[str, float]) -> dict[str, float]:
    """What else the weights of some servers are multiplied by for this model."""
    return {**slow, **{name: RESERVED * slow.get(name, 1.0) for name in model.reserved}}


def slowness(model: Model, sight: "Sight", streams: bool) -> dict[str, float]:
    """The factors of those servers that take several times as long as the fastest one for half of their answers."""
    paces = sight.paces.of(model.name, streams)
    if len(model.servers) == 1:
        return {}
    here = {server.server_id: pace for server in model.servers if (pace := paces.get(server.server_id)) is not None}
    known = [median for pace in here.values() if (median := pace.median) is not None]
    if max(known, default=0.0) <= max(NEVER_SLOW, SLOW_RATIO * min(known, default=0.0)):
        return {}  # as nearly always, and soon seen
    slow_from = max(NEVER_SLOW, SLOW_RATIO * min(known))
    medians = {name: usual for name, pace in here.items() if (usual := pace.usual) is not None}
    return {name: max(LEAST, slow_from / median) for name, median in medians.items() if median > slow_from}


def started(record: Record | None, sight: "Sight") -> float:
    """Slow start: in even steps from a tenth to the whole; 1 where a server has not been out."""
    if record is None or not record.returned:
        return 1.0
    elapsed = sight.now * 1000 + sight.clock_ms - record.returned
    if elapsed >= sight.slow_start * 1000 or elapsed < -AHEAD_MS:
        return 1.0
    step = int(max(0.0, elapsed) / (sight.slow_start * 1000) * STEPS)
    return FIRST_SHARE + (1 - FIRST_SHARE) * step / STEPS


def _unloaded(server: Server, load: Load) -> float:
    """1 up to `BUSY`, then down to a tenth at full load; a queue halves."""
    places = (load.in_flight or 0) / server.max_concurrent if server.max_concurrent else 0.0
    busiest = max(load.cpu or 0.0, load.memory or 0.0, places)
    factor = 1.0 if busiest <= BUSY else max(LEAST, (1 - min(busiest, 1.0)) / (1 - BUSY))
    return factor * (0.5 if load.queue else 1.0)
