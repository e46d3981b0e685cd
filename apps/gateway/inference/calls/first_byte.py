"""How long a server may take for the first byte of an answer: by what it has been seen to need, once it is warm; until
then by what others need for the same model, where it has answered at all or holds the model in memory.
"""

import math
from collections.abc import Mapping

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.conditions import UNKNOWN, Load
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
SWAPS_WITHIN = 60_000
"""Milliseconds for which a server that has been asked for a model out of memory may load that one at others' cost,
while it has not told that it holds other models now.
"""
MOST_CUT = 16
"""Requests that are remembered, of each server, while it is not known why they have waited in vain."""
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
        self._swapping: dict[str, Load] = {}
        """What servers told of themselves when they were asked for a model that they had to load."""
        self._cut: dict[str, list[tuple[Key, float, int]]] = {}
        """By server: what waited in vain for so many seconds, and how often anybody had gone out or come back then."""
        watch.new_answers = self._new_answers

    def limit(self, key: Key, server: Server) -> float:
        """Seconds: the longest where the server may have to load the model first, or nobody is known."""
        load = self._watch.loads.get(server.server_id, UNKNOWN)
        has = load.has(key.model)
        if has is False:
            self._swapping[server.server_id] = load
            return self._longest[key.streams]
        if self._swapping and self._is_swapping(server.server_id, load):
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

    def _is_swapping(self, server_id: str, load: Load) -> bool:
        """Whether it may have thrown out what it says it holds, to load a model that somebody has asked for: Ollama
        lets requests for the others wait meanwhile, and gives the loading up when its client leaves.
        """
        told = self._swapping.get(server_id)
        if told is None:
            return False
        if told.models == load.models and load.at - told.at < SWAPS_WITHIN:
            return True
        del self._swapping[server_id]
        return False

    def cut(self, key: Key, seconds: float, moves: int) -> None:
        """A request has waited so long in vain: its server hangs, or the request takes long. `moves`: how often anybody
        has gone out or come back.

        What its servers do next says which it was (`answers`). Were only those counted that came within the limit, it
        would never rise, and requests that take longer than most would fail for good.
        """
        cut = self._cut.setdefault(key.server, [])
        if len(cut) < MOST_CUT:
            cut.append((key, seconds, moves))

    def answers(self, server_id: str, moves: int) -> None:
        """The server has given a good answer: if nobody has gone out or come back meanwhile, it did not hang."""
        for key, seconds, then in self._cut.pop(server_id, ()):
            if then == moves:
                self._paces[key].cut(seconds)

    def forget(self) -> None:
        """Works all limits out anew."""
        self._known.clear()
        self._swapping.clear()
        self._cut.clear()

    def _new_answers(self) -> dict[Key, Counts]:
        """What this worker has seen and not told yet; lost where Redis is away."""
        return {key: untold for key, pace in self._paces.items() if (untold := pace.take_untold())}

    def _work_out(self, p99: float, key: Key) -> float:
        """In steps of a quarter: each limit has a timer of its own, so there must be few."""
        times = max(1.0, TIMES * p99 / self._shortest)
        return min(self._longest[key.streams], self._shortest * RATIO ** math.ceil(math.log(times) / math.log(RATIO)))
