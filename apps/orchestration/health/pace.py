"""How fast each server answers for each model: by it limits, hedges, weights and the fastest of two are decided. Pure.

Times of whole answers and of streams' first contents are kept apart: they differ by orders of magnitude.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, ItemsView, Mapping
from itertools import accumulate
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

_ENDS = [FASTEST * RATIO**steps for steps in range(BUCKETS)]


class Key(NamedTuple):
    """Of one pace."""

    model: str
    server: str
    streams: bool


Counts = Mapping[int, int]
"""Answers by the number of their bucket."""


class Pace:
    """One server's answers for one model."""

    __slots__ = ("_at", "_counts", "_median", "_untold", "average", "count")

    def __init__(self) -> None:
        self.count = 0
        """Answers that are remembered."""
        self.average = 0.0
        """Seconds: a moving average that rises at once and falls slowly (peak EWMA, as in Finagle's balancer)."""
        self._at = 0.0
        self._counts = [0] * BUCKETS
        self._untold: dict[int, int] = {}
        self._median: float | None = None
        """None: to be worked out."""

    def answered(self, seconds: float, now: float) -> None:
        """Takes the time of a good answer."""
        self._average_in(seconds, now)
        self._count(_bucket_of(seconds))

    def lost(self, seconds: float, now: float) -> None:
        """Takes an answer that nobody waited for any longer: it would have taken as long as those usually do that take
        longer than this (so does Efron's redistribution to the right of what is censored).
        """
        bucket, seconds = self._usual_beyond(seconds)
        self._average_in(seconds, now)
        self._count(bucket)

    def cut(self, seconds: float) -> None:
        """Takes an answer that was given up by its limit, though its server gives others: like one that was lost, but
        for the average, where it has counted as a failure.
        """
        bucket, _ = self._usual_beyond(seconds)
        self._count(bucket)

    def _usual_beyond(self, seconds: float) -> tuple[int, float]:
        """The bucket in the middle of the answers that took longer, and its time; those of `seconds` where none did."""
        bucket = _bucket_of(seconds)
        wanted = math.ceil(sum(self._counts[bucket + 1 :]) / 2)
        for slower in range(bucket + 1, BUCKETS) if wanted else ():
            wanted -= self._counts[slower]
            if wanted <= 0:
                return slower, FASTEST * RATIO**slower
        return bucket, seconds

    def _count(self, steps: int) -> None:
        self._counts[steps] += 1
        self._untold[steps] = self._untold.get(steps, 0) + 1
        self.count += 1
        self._median = None
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
        return _ENDS[bisect_left(list(accumulate(self._counts)), math.ceil(share * self.count))]

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer that is remembered, at most a quarter too many; 0 where there is none."""
        return max((end for end, count in zip(_ENDS, self._counts, strict=True) if count), default=0.0)

    @property
    def median(self) -> float | None:
        """The quantile of a half, which is asked for much more often than it changes."""
        if self._median is None:
            self._median = self.quantile(0.5)
        return self._median

    @property
    def usual(self) -> float | None:
        """The median, or the moving average where that is less: a server of few requests that has become faster would
        have the median of its slow times for hours.
        """
        median = self.median
        return None if median is None else min(median, _ENDS[_bucket_of(self.average)])

    def average_at(self, now: float) -> float:
        """The moving average as it is while no answers come: forgotten, as in Finagle's. Else one bad answer would keep
        all requests away, and with them those that could tell that the server is fast again.
        """
        return self.average * math.exp(min(0.0, self._at - now) / FORGETS_IN)

    def _average_in(self, seconds: float, now: float) -> None:
        if seconds >= self.average:
            self.average = seconds
        else:
            kept = math.exp((self._at - now) / FORGETS_IN)
            self.average = self.average * kept + seconds * (1 - kept)
        self._at = now


def _bucket_of(seconds: float) -> int:
    return bisect_left(_ENDS, seconds, 0, BUCKETS - 1)


class Paces:
    """All of a worker's."""

    def __init__(self) -> None:
        self._paces: dict[Key, Pace] = {}
        self._of_models: defaultdict[tuple[str, bool], dict[str, Pace]] = defaultdict(dict)
        """The same by model and by whether they are of streams; by server."""

    def __getitem__(self, key: Key) -> Pace:
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = self._of_models[key.model, key.streams][key.server] = Pace()
        return pace

    def items(self) -> ItemsView[Key, Pace]:
        """All of them."""
        return self._paces.items()

    def find(self, key: Key) -> Pace | None:
        """The pace, if there is one."""
        return self._paces.get(key)

    def of(self, model: str, streams: bool) -> Mapping[str, Pace]:
        """Those for a model, by server."""
        return self._of_models.get((model, streams), {})

    def forget_all_but(self, holders: Callable[[str], Container[str]]) -> None:
        """Drops those on servers that don't hold the model any more: `holders` gives the ids of those that do."""
        known = {model: holders(model) for model, _ in self._of_models}
        kept = {key: pace for key, pace in self._paces.items() if key.server in known[key.model]}
        self._paces, self._of_models = kept, defaultdict(dict)
        for key, pace in kept.items():
            self._of_models[key.model, key.streams][key.server] = pace
