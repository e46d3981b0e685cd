"""Percentiles, medians and verdicts, by numbers worked out by hand."""

import math

import pytest

from bench.measurement import Result, Tally, middle, percentile
from bench.rounds import CASES, Row, Sample
from bench.usage import Usage
from bench.verdicts import verdicts


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1), (0.01, 1), (0.5, 50), (0.505, 51), (0.9, 90), (0.99, 99), (0.991, 100), (1.0, 100)],
)
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile(range(1, 101), share) == expected


def test_percentile_of_one_and_of_none() -> None:
    assert percentile([7], 0.5) == percentile([7], 0.99) == 7
    assert math.isnan(percentile([], 0.5))


def test_middle_leaves_out_what_is_no_number() -> None:
    assert middle([3.0, math.nan, 1.0, 2.0]) == 2.0
    assert math.isnan(middle([math.nan]))


def test_tally_in_milliseconds() -> None:
    tally = Tally()
    for milliseconds in (1, 2, 3, 4):
        tally.answered(milliseconds * 1_000_000, units=1)
    tally.failed("status 500", b"no")
    result = tally.result(2.0, {})
    assert (result.requests, result.units, result.rate, result.failed) == (5, 4, 2.0, 1)
    assert (result.p50, result.p90, result.max) == (2.0, 4.0, 4.0)
    assert result.first_error == "status 500: no"


def sample(rate: float, *, cpu_seconds: float = 1.0, p50: float = 1.0) -> Sample:
    result = Result(
        seconds=1.0,
        requests=int(rate),
        units=int(rate),
        rate=rate,
        p50=p50,
        p90=p50,
        p99=p50,
        max=p50,
        gap_max=0.0,
        bytes=0,
        errors={},
        first_error="",
        usage={1: Usage(cpu_seconds, 0.0, 50.0, 50.0)},
    )
    return Sample(result, cpu_seconds, 0.0, 0.0, 50.0, 50.0)


def row(case: str, target: str, *samples: Sample) -> tuple[tuple[str, str], Row]:
    found = next(known for known in CASES if known.name == case)
    return (case, target), Row(found, target, list(samples))


def test_ratios_are_of_pairs_of_one_round() -> None:
    """A machine that is slow in one round is slow for both."""
    rows = dict(
        [
            row("chat", "relay", sample(8000), sample(2000), sample(8000)),
            row("chat", "citadel", sample(4800), sample(1200), sample(3200)),
        ]
    )
    ratio = next(verdict for verdict in verdicts(rows) if verdict.name == "chat: Citadel / relay")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.6, 0.4, 0.6))
    assert ratio.is_met


def test_a_server_that_waited_for_the_load_is_taken_at_a_full_core() -> None:
    rows = dict(
        [row("chat", "relay", sample(6000)), row("chat", "nginx", sample(30_000, cpu_seconds=0.5))],
    )
    ratio = next(verdict for verdict in verdicts(rows) if "nginx" in verdict.name)
    assert ratio.value == pytest.approx(0.1)


def test_added_latency_is_the_difference_at_one_rate() -> None:
    rows = dict(
        [
            row("chat-fixed-rate", "upstream", sample(100, p50=0.2)),
            row("chat-fixed-rate", "citadel", sample(100, p50=1.9)),
        ]
    )
    added = next(verdict for verdict in verdicts(rows) if verdict.name.startswith("added"))
    assert added.value == pytest.approx(1.7)
    assert not added.is_met
