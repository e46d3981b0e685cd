"""What was measured: one result of the load generator, and the arithmetic of percentiles and medians."""

import math
from array import array
from collections.abc import Sequence
from statistics import median

import msgspec

from bench.usage import Usage


class Result(msgspec.Struct, frozen=True):
    """One measurement. Times are in milliseconds, the rate in units (requests, or chunks of streams) a second.

    ``gap_max`` is the longest pause inside an answer; ``warmup_requests`` were sent before and count in nothing else.
    ``p50_compared`` is of the requests that are there to compare the others with, and are in no other time.
    """

    seconds: float
    requests: int
    units: int
    rate: float
    p50: float
    p90: float
    p99: float
    max: float
    gap_max: float
    bytes: int
    errors: dict[str, int]
    first_error: str
    usage: dict[int, Usage]
    warmup_requests: int = 0
    p50_compared: float = math.nan

    @property
    def failed(self) -> int:
        """How many requests were not answered, or answered wrongly."""
        return sum(self.errors.values())


class Tally:
    """What the load generator counts while it runs. Times are in nanoseconds."""

    def __init__(self) -> None:
        self.latencies = array("q")
        self.compared = array("q")
        self.requests = 0
        self.units = 0
        self.bytes = 0
        self.gap_max = 0
        self.errors: dict[str, int] = {}
        self.first_error = ""

    def answered(self, latency: int, units: int, *, is_compared: bool = False) -> None:
        """Count a right answer, worth ``units`` (chunks of a stream, else 1)."""
        self.requests += 1
        self.units += units
        (self.compared if is_compared else self.latencies).append(latency)

    def failed(self, reason: str, detail: bytes = b"") -> None:
        """Count an answer that was wrong or did not come; keep the beginning of the first one."""
        self.requests += 1
        self.errors[reason] = self.errors.get(reason, 0) + 1
        if not self.first_error:
            self.first_error = f"{reason}: {detail[:300].decode(errors='replace')}"

    def result(self, seconds: float, usage: dict[int, Usage]) -> Result:
        """Sum up a measurement that took ``seconds``."""
        ordered = sorted(self.latencies)
        return Result(
            seconds=seconds,
            requests=self.requests,
            units=self.units,
            rate=self.units / seconds,
            p50=percentile(ordered, 0.50) / 1e6,
            p90=percentile(ordered, 0.90) / 1e6,
            p99=percentile(ordered, 0.99) / 1e6,
            max=percentile(ordered, 1.0) / 1e6,
            gap_max=self.gap_max / 1e6,
            bytes=self.bytes,
            errors=self.errors,
            first_error=self.first_error,
            usage=usage,
            p50_compared=percentile(sorted(self.compared), 0.50) / 1e6,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of the values do not exceed (nearest rank); NaN when there are none."""
    if not ordered:
        return math.nan
    rank = math.ceil(share * len(ordered))
    return ordered[max(rank, 1) - 1]


def middle(values: Sequence[float]) -> float:
    """Return the median of the values that are numbers; NaN when there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return median(numbers) if numbers else math.nan
