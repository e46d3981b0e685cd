"""What probes say of a server: from what is remembered and the outcome of one more probe to what is said now. Pure.

| it is | the probe | it becomes |
| --- | --- | --- |
| healthy or degraded | fails, the `unhealthy_after`th time in a row | unhealthy |
| healthy or degraded | fails | what it is |
| healthy or degraded | succeeds, but slowly, under load, or while others fail now and then | degraded |
| healthy or degraded | succeeds | healthy |
| unhealthy | fails | unhealthy |
| unhealthy | succeeds, the `healthy_after`th time in a row | degraded or healthy, as above |
| unhealthy | succeeds | unhealthy |
"""

from typing import NamedTuple

import msgspec

from apps.orchestration.health.conditions import Status

CRITICAL, SLOW, PARTLY_FAILING = "critical", "slow", "partly_failing"
FEW = 2
"""Failures, among which there may be successes, that make a server one that fails now and then."""


class Thresholds(NamedTuple):
    """How many probes decide, and which of them are slow."""

    unhealthy_after: int
    healthy_after: int
    slow_ms: int
    critical_ms: int


class Outcome(msgspec.Struct, frozen=True):
    """One probe: how it failed, or what there is to say against a success."""

    failure: str = ""
    strain: str = ""
    response_ms: int | None = None
    """None for a bare connection and for what was not answered."""


class Memory(msgspec.Struct, frozen=True):
    """What is said of a server, and what must be remembered to say more. Times are Redis's milliseconds."""

    status: Status = "healthy"
    reason: str = ""
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    troubles: int = 0
    """Failures since the last `healthy_after` successes in a row."""
    response_ms: int | None = None
    last_seen: int = 0
    """When the last probe that succeeded began."""
    failing_since: int = 0
    """When the first failed probe since then began; 0: the last one has not failed."""
    doubted: int = 0
    """When the traffic found that no connection could be made, as long as it stays with that."""


def follow(before: Memory, outcome: Outcome, thresholds: Thresholds, *, now: int, doubted: int = 0) -> Memory:
    """What is said after one more probe, which began `now`.

    Successes from before the traffic's doubt prove nothing against it.
    """
    if doubted != before.doubted:
        successes = 0 if doubted else before.consecutive_successes
        before = msgspec.structs.replace(before, doubted=doubted, consecutive_successes=successes)
    if outcome.failure:
        return _failed(before, outcome, thresholds, now)
    return _succeeded(before, outcome, thresholds, now)


def in_doubt(memory: Memory, thresholds: Thresholds) -> bool:
    """Whether the next probes shall come fast: something has begun that is not decided yet."""
    if memory.status == "unhealthy":
        return memory.consecutive_successes > 0
    return memory.consecutive_failures > 0 or (memory.doubted > 0 and not proven(memory, thresholds))


def proven(memory: Memory, thresholds: Thresholds) -> bool:
    """Whether enough good probes have come since the traffic could not connect."""
    return memory.doubted > 0 and memory.consecutive_successes >= thresholds.healthy_after


def _failed(before: Memory, outcome: Outcome, thresholds: Thresholds, now: int) -> Memory:
    failures = before.consecutive_failures + 1
    out = before.status == "unhealthy" or failures >= thresholds.unhealthy_after
    return msgspec.structs.replace(
        before,
        status="unhealthy" if out else before.status,
        reason=outcome.failure if out else before.reason,
        consecutive_failures=failures,
        consecutive_successes=0,
        troubles=before.troubles + 1,
        response_ms=outcome.response_ms,
        failing_since=before.failing_since or now,
    )


def _succeeded(before: Memory, outcome: Outcome, thresholds: Thresholds, now: int) -> Memory:
    successes = before.consecutive_successes + 1
    troubles = before.troubles if successes < thresholds.healthy_after else 0
    status, reason = before.status, before.reason
    if status != "unhealthy" or successes >= thresholds.healthy_after:
        reason = _strain(outcome, troubles, thresholds)
        status = "degraded" if reason else "healthy"
    return msgspec.structs.replace(
        before,
        status=status,
        reason=reason,
        consecutive_failures=0,
        consecutive_successes=successes,
        troubles=troubles,
        response_ms=outcome.response_ms,
        last_seen=now,
        failing_since=0,
    )


def _strain(outcome: Outcome, troubles: int, thresholds: Thresholds) -> str:
    took = outcome.response_ms or 0
    if took > thresholds.critical_ms:
        return CRITICAL
    if took > thresholds.slow_ms:
        return SLOW
    return outcome.strain or (PARTLY_FAILING if troubles >= FEW else "")
