"""How long a server may take for the first byte of an answer: by what it has been seen to need, once it is warm."""

import math
from collections.abc import Mapping

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import UNKNOWN
from apps.orchestration.health.pace import RATIO, Counts, Key, Paces
from apps.orchestration.health.watch import Watch
from citadel.sections import RoutingSection

TIMES = 4
"""The p99."""
LOOKS_EVERY = 16
"""Answers after which a limit is worked out anew."""


class FirstByte:
    """One worker's limits, by its own answers, or by those of all workers while its own are too few."""

    def __init__(self, paces: Paces, watch: Watch, routing: RoutingSection):
        self._paces = paces
        self._watch = watch
        self._longest = routing.first_byte_timeout
        self._shortest = min(routing.first_byte_floor, routing.first_byte_timeout)
        self._known: dict[Key, tuple[int, Mapping[Key, float], float]] = {}
        watch.new_answers = self._new_answers

    def limit(self, key: Key, server: Server) -> float:
        """Seconds: the longest while the server is not warm or must load the model first."""
        if self._watch.loads.get(server.server_id, UNKNOWN).has(key.model) is False:
            return self._longest
        pace, elsewhere = self._paces.find(key), self._watch.paces
        looks = pace.count // LOOKS_EVERY if pace else 0
        known = self._known.get(key)
        if known is None or known[0] != looks or known[1] is not elsewhere:
            p99 = (pace.quantile(0.99) if pace else None) or elsewhere.get(key)
            known = self._known[key] = (looks, elsewhere, self._work_out(p99))
        return known[2]

    def limit_of_trial(self, key: Key, server: Server, model: Model) -> float:
        """The same for a server that is out: it may take as long as the slowest of the others, and no longer."""
        others = [self.limit(key._replace(server=other.server_id), other) for other in model.servers]
        known = [limit for limit in others if limit < self._longest]
        return min(self.limit(key, server), max(known, default=self._longest))

    def forget(self) -> None:
        """Works all limits out anew."""
        self._known.clear()

    def _new_answers(self) -> dict[Key, Counts]:
        """What this worker has seen and not told yet; lost where Redis is away."""
        return {key: untold for key, pace in self._paces.items() if (untold := pace.take_untold())}

    def _work_out(self, p99: float | None) -> float:
        """In steps of a quarter: each limit has a timer of its own, so there must be few."""
        if p99 is None:
            return self._longest
        times = max(1.0, TIMES * p99 / self._shortest)
        return min(self._longest, self._shortest * RATIO ** math.ceil(math.log(times) / math.log(RATIO)))
