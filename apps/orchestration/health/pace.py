"""How fast each server answers for each model: by it limits, hedges, weights and the fastest of two are decided. Pure.

Times of whole answers and of streams' first contents are kept apart: they differ by orders of magnitude.
"""

import math
from collections.abc import ItemsView, Mapping
from typing import NamedTuple

WARM = 20
"""Answers from which on quantiles say anything."""
FASTEST = 0.001
"""Seconds; the upper end of the first bucket."""
RATIO = 1.25
"""From the end of one bucket to that of the next: how exact a quantile is."""
BUCKETS = 62
"""The last one ends at about 800 s."""
REMEMBERED = 1000
"""Answers after which older ones count for half, and again."""
FORGETS_IN = 10.0
"""Seconds in which the moving average forgets all but a third of what was (its time constant)."""
FAILURE_COSTS = 5.0
"""Seconds as which a failure counts at least: no server is fast by failing."""

_LOG_RATIO = math.log(RATIO)


class Key(NamedTuple):
    """Of one pace."""

    model: str
    server: str
    streams: bool


Counts = Mapping[int, int]
"""Answers by the number of their bucket."""


class Pace:
    """One server's answers for one model."""

    __slots__ = ("_at", "_counts", "_untold", "average", "count")

    def __init__(self) -> None:
        self.count = 0
        """Answers that are remembered."""
        self.average = 0.0
        """Seconds: a moving average that rises at once and falls slowly (peak EWMA, as in Finagle's balancer)."""
        self._at = 0.0
        self._counts = [0] * BUCKETS
        self._untold: dict[int, int] = {}

    def answered(self, seconds: float, now: float) -> None:
        """Takes the time of a good answer."""
        self._average_in(seconds, now)
        self._count(_bucket_of(seconds))

    def lost(self, seconds: float, now: float) -> None:
        """Takes an answer that nobody waited for any longer: it would have taken as long as those usually do that take
        longer than this (so does Efron's redistribution to the right of what is censored).
        """
        bucket = _bucket_of(seconds)
        wanted = math.ceil(sum(self._counts[bucket + 1 :]) / 2)
        for slower in range(bucket + 1, BUCKETS) if wanted else ():
            wanted -= self._counts[slower]
            if wanted <= 0:
                bucket, seconds = slower, FASTEST * RATIO**slower
                break
        self._average_in(seconds, now)
        self._count(bucket)

    def _count(self, steps: int) -> None:
        self._counts[steps] += 1
        self._untold[steps] = self._untold.get(steps, 0) + 1
        self.count += 1
        if self.count >= REMEMBERED:
            self._counts = [count >> 1 for count in self._counts]
            self.count = sum(self._counts)

    def failed(self, seconds: float, now: float) -> None:
        """Takes a failure: it counts as a slow answer, in the average alone."""
        self._average_in(max(seconds, FAILURE_COSTS), now)

    def take_untold(self) -> Counts:
        """The answers since this was last asked."""
        untold, self._untold = self._untold, {}
        return untold

    def quantile(self, share: float) -> float | None:
        """Seconds in which that share of the answers came, at most a quarter too many; None until it is warm."""
        if self.count < WARM:
            return None
        wanted = math.ceil(share * self.count)
        for steps, count in enumerate(self._counts):
            wanted -= count
            if wanted <= 0:
                return float(FASTEST * RATIO**steps)
        return None

    def _average_in(self, seconds: float, now: float) -> None:
        if seconds >= self.average:
            self.average = seconds
        else:
            kept = math.exp((self._at - now) / FORGETS_IN)
            self.average = self.average * kept + seconds * (1 - kept)
        self._at = now


def _bucket_of(seconds: float) -> int:
    steps = math.ceil(math.log(seconds / FASTEST) / _LOG_RATIO) if seconds > FASTEST else 0
    return min(steps, BUCKETS - 1)


class Paces:
    """All of a worker's."""

    def __init__(self) -> None:
        self._paces: dict[Key, Pace] = {}

    def __getitem__(self, key: Key) -> Pace:
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace()
        return pace

    def items(self) -> ItemsView[Key, Pace]:
        """All of them."""
        return self._paces.items()

    def find(self, key: Key) -> Pace | None:
        """The pace, if there is one."""
        return self._paces.get(key)

    def forget_all_but(self, server_ids: frozenset[str]) -> None:
        """Drops servers that are no longer in the fleet."""
        self._paces = {key: pace for key, pace in self._paces.items() if key.server in server_ids}
