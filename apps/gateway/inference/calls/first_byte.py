"""How long a server may take for the first byte of an answer: by what it has been seen to need, once it is warm; until
then by what others need for the same model, where it has answered at all or holds the model in memory.
"""

import math
from collections.abc import Mapping

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import UNKNOWN
from apps.orchestration.health.pace import RATIO, Counts, Key, Pace, Paces
from apps.orchestration.health.watch import Watch
from citadel.sections import RoutingSection

TIMES = 4
"""The p99."""
NEWCOMER = 10.0
"""Seconds that a server has at least of which nothing is known but that it need not load the model: one that hangs is
to be found within 15, by two requests that waited in vain a second apart.
"""
IN_TIME = 0.99
"""Of the time that a request has in all: its server has too long taken before the request itself has."""
LOOKS_EVERY = 16
"""Answers after which a limit is worked out anew."""


class FirstByte:
    """One worker's limits, by its own answers, or by those of all workers while its own are too few.

    A request for a whole answer has `deadline` seconds in all.
    """

    def __init__(self, paces: Paces, watch: Watch, routing: RoutingSection, deadline: float):
        self._paces = paces
        self._watch = watch
        longest = routing.first_byte_timeout
        self._longest = {True: longest, False: min(longest, IN_TIME * deadline)}
        """By whether they are streams."""
        self._shortest = min(routing.first_byte_floor, *self._longest.values())
        self._known: dict[Key, tuple[int, Mapping[Key, float], float]] = {}
        watch.new_answers = self._new_answers

    def limit(self, key: Key, server: Server) -> float:
        """Seconds: the longest where the server may have to load the model first, or nobody is known."""
        has = self._watch.loads.get(server.server_id, UNKNOWN).has(key.model)
        if has is False:
            return self._longest[key.streams]
        pace, elsewhere = self._paces.find(key), self._watch.paces
        looks = pace.count // LOOKS_EVERY if pace and pace.count else -1 - (has is True)
        known = self._known.get(key)
        if known is None or known[0] != looks or known[1] is not elsewhere:
            p99 = (pace.quantile(0.99) if pace else None) or elsewhere.get(key)
            limit = self._work_out(p99, key) if p99 else self._by_others(key, pace, is_loaded=has is True)
            known = self._known[key] = (looks, elsewhere, limit)
        return known[2]

    def limit_of_trial(self, key: Key, server: Server, model: Model) -> float:
        """The same for a server that is out: it may take as long as the slowest of the others, and no longer."""
        others = [self.limit(key._replace(server=other.server_id), other) for other in model.servers]
        longest = self._longest[key.streams]
        known = [limit for limit in others if limit < longest]
        return min(self.limit(key, server), max(known, default=longest))

    def _by_others(self, key: Key, pace: Pace | None, *, is_loaded: bool) -> float:
        """The limit of one who has given too few answers to be known, or none."""
        has_answered = pace is not None and pace.count > 0
        here = [other.quantile(0.99) for other in self._paces.of(key.model, key.streams).values()]
        elsewhere = [p99 for other, p99 in self._watch.paces.items() if other[::2] == key[::2]]
        slowest = max([p99 for p99 in (*here, *elsewhere) if p99], default=None)
        if slowest is None or not (has_answered or is_loaded):
            return self._longest[key.streams]
        if pace and has_answered:
            return self._work_out(max(slowest, pace.slowest), key)
        return min(self._longest[key.streams], max(NEWCOMER, self._work_out(slowest, key)))

    def forget(self) -> None:
        """Works all limits out anew."""
        self._known.clear()

    def _new_answers(self) -> dict[Key, Counts]:
        """What this worker has seen and not told yet; lost where Redis is away."""
        return {key: untold for key, pace in self._paces.items() if (untold := pace.take_untold())}

    def _work_out(self, p99: float, key: Key) -> float:
        """In steps of a quarter: each limit has a timer of its own, so there must be few."""
        times = max(1.0, TIMES * p99 / self._shortest)
        return min(self._longest[key.streams], self._shortest * RATIO ** math.ceil(math.log(times) / math.log(RATIO)))
