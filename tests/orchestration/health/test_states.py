"""What probes say of a server, by any history: the table of states."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.health.states import (
    CRITICAL,
    PARTLY_FAILING,
    SLOW,
    Memory,
    Outcome,
    Thresholds,
    follow,
    in_doubt,
    proven,
)

THRESHOLDS = Thresholds(unhealthy_after=3, healthy_after=5, slow_ms=1000, critical_ms=5000)
GOOD, BAD = Outcome(response_ms=10), Outcome("refused")
SLOWLY, FAR_TOO_SLOWLY = Outcome(response_ms=1001), Outcome(response_ms=5001)

outcomes = st.sampled_from([GOOD, BAD, SLOWLY, FAR_TOO_SLOWLY, Outcome("timeout"), Outcome(strain="loaded"), Outcome()])
histories = st.lists(outcomes, max_size=60)
thresholds = st.builds(Thresholds, st.integers(1, 6), st.integers(1, 8), st.integers(10, 1000), st.integers(1000, 9000))


def fails(outcome: Outcome) -> bool:
    return bool(outcome.failure)


def after(history: list[Outcome], limits: Thresholds = THRESHOLDS, *, doubted: int = 0) -> list[Memory]:
    """What was said after each probe, a second between them; nothing was known before."""
    said = [Memory()]
    for number, outcome in enumerate(history):
        said.append(follow(said[-1], outcome, limits, now=1000 * (number + 1), doubted=doubted))
    return said


@pytest.mark.parametrize(
    ("history", "status", "reason"),
    [
        ([], "healthy", ""),
        ([GOOD], "healthy", ""),
        ([BAD] * 2, "healthy", ""),
        ([BAD] * 3, "unhealthy", "refused"),
        ([BAD, BAD, GOOD, BAD, BAD], "degraded", PARTLY_FAILING),
        ([BAD, GOOD], "healthy", ""),
        ([BAD, GOOD, BAD, GOOD], "degraded", PARTLY_FAILING),
        ([BAD, GOOD, BAD, *[GOOD] * 5], "healthy", ""),
        ([SLOWLY], "degraded", SLOW),
        ([SLOWLY, GOOD], "healthy", ""),
        ([Outcome(response_ms=1000)], "healthy", ""),
        ([Outcome(strain="loaded")], "degraded", "loaded"),
        ([SLOWLY, BAD, BAD], "degraded", SLOW),
        ([FAR_TOO_SLOWLY] * 3, "degraded", CRITICAL),
        ([*[BAD] * 3, *[FAR_TOO_SLOWLY] * 5], "degraded", CRITICAL),
        ([Outcome(response_ms=5000)] * 3, "degraded", SLOW),
        ([*[BAD] * 3, *[GOOD] * 4], "unhealthy", "refused"),
        ([*[BAD] * 3, *[GOOD] * 5], "healthy", ""),
        ([*[BAD] * 3, *[GOOD] * 4, BAD, *[GOOD] * 4], "unhealthy", "refused"),
        ([*[BAD] * 3, *[SLOWLY] * 5], "degraded", SLOW),
        ([*[BAD] * 2, Outcome("timeout"), Outcome("status_503")], "unhealthy", "status_503"),
    ],
)
def test_the_table(history: list[Outcome], status: str, reason: str) -> None:
    last = after(history)[-1]
    assert (last.status, last.reason) == (status, reason)


@given(histories, thresholds)
def test_only_enough_failures_in_a_row_make_it_unhealthy(history: list[Outcome], limits: Thresholds) -> None:
    for number, (before, now) in enumerate(pairwise(after(history, limits))):
        last = history[max(0, number + 1 - limits.unhealthy_after) : number + 1]
        if before.status != "unhealthy":
            enough = len(last) == limits.unhealthy_after and all(fails(one) for one in last)
            assert (now.status == "unhealthy") is enough


@given(histories, thresholds)
def test_only_enough_successes_in_a_row_bring_it_back(history: list[Outcome], limits: Thresholds) -> None:
    for number, (before, now) in enumerate(pairwise(after(history, limits))):
        last = history[max(0, number + 1 - limits.healthy_after) : number + 1]
        if before.status == "unhealthy":
            enough = len(last) == limits.healthy_after and not any(fails(one) for one in last)
            assert (now.status != "unhealthy") is enough


@given(histories)
def test_the_counts_are_those_of_the_last_run(history: list[Outcome]) -> None:
    for number, now in enumerate(after(history)[1:]):
        failed = [fails(one) for one in history[: number + 1]]
        run = next((length for length, one in enumerate(reversed(failed)) if one != failed[-1]), len(failed))
        counts = (run, 0) if failed[-1] else (0, run)
        assert (now.consecutive_failures, now.consecutive_successes) == counts
        assert now.failing_since == (1000 * (number + 2 - run) if failed[-1] else 0)
        good = [1000 * (at + 1) for at, one in enumerate(failed) if not one]
        assert now.last_seen == (good[-1] if good else 0)


@given(histories, thresholds)
def test_what_is_not_decided_is_in_doubt(history: list[Outcome], limits: Thresholds) -> None:
    """Enough probes that all end the same way settle it, whatever was before."""
    last = after(history, limits)[-1]
    for outcome in (GOOD, BAD):
        now = last
        for _ in range(max(limits.healthy_after, limits.unhealthy_after)):
            now = follow(now, outcome, limits, now=1)
        assert not in_doubt(now, limits)
        assert now.status == ("unhealthy" if outcome is BAD else "healthy")
    if not in_doubt(last, limits):
        assert last.consecutive_failures == 0 or last.status == "unhealthy"


@given(histories, st.integers(0, 7))
def test_the_traffics_doubt_is_disproved_by_good_probes_after_it_alone(history: list[Outcome], good: int) -> None:
    now = after(history)[-1]
    assert not proven(now, THRESHOLDS)
    for number in range(good):
        now = follow(now, GOOD, THRESHOLDS, now=1, doubted=77)
        assert proven(now, THRESHOLDS) is (number + 1 >= THRESHOLDS.healthy_after)
        assert in_doubt(now, THRESHOLDS) is (number + 1 < THRESHOLDS.healthy_after)
    assert not proven(follow(now, GOOD, THRESHOLDS, now=1, doubted=78), THRESHOLDS)
    assert not proven(follow(now, BAD, THRESHOLDS, now=1, doubted=77), THRESHOLDS)
    assert not proven(follow(now, GOOD, THRESHOLDS, now=1), THRESHOLDS)
