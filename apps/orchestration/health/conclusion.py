"""From the outcome of a probe to what stands on the board."""

from typing import NamedTuple

import msgspec

from apps.orchestration.health.board import Board, Change
from apps.orchestration.health.conditions import Record
from apps.orchestration.health.states import Memory, Outcome, Thresholds, follow, proven
from citadel.sections import Config

NO_CONNECTION = frozenset({"refused", "connect_timeout", "no_address", "bad_certificate", "tls_failed"})
"""What the traffic has against a server and good probes disprove."""
BROKEN_OFF = "disconnected"
"""What it has against one that was killed while it worked, or breaks all answers off."""

FORGOTTEN_MS = 180_000
"""After so long without a word of a worker it is no longer so that many requests fail: one may have nothing to do, or
have ended. Where it is so that is said again in time (`standing.py`).
"""


class Concluded(NamedTuple):
    """What is remembered of a server now, and what became of its status."""

    memory: Memory
    changes: list[Change]


def thresholds_of(config: Config) -> Thresholds:
    """As they are configured."""
    health = config.health
    return Thresholds(health.unhealthy_after, health.healthy_after, health.slow_ms, health.critical_ms)


async def conclude(board: Board, server_id: str, outcome: Outcome, thresholds: Thresholds, now: float) -> Concluded:
    """Says on the board what follows from an outcome; `now` is Redis's clock in milliseconds.

    RedisError where it can't be said.
    """
    change = None
    while change is None:  # another probe may end at the same time: each counts
        record = await board.look_up(server_id)
        before = msgspec.convert(record.memory("probe"), Memory)
        after = follow(before, outcome, thresholds, now=round(now), doubted=_doubted(record, before, outcome))
        remembered = msgspec.to_builtins(after)
        change = await board.conclude(record, server_id, "probe", after.status, after.reason, remembered)
    changes = [change]
    is_over = proven(after, thresholds) or (not outcome.failure and _is_forgotten(record, now))
    if is_over and (cleared := await board.conclude(record, server_id, "traffic", "healthy")):
        changes.append(cleared)
    return Concluded(after, changes)


def awaits_request(record: Record) -> bool:
    """Whether only a real request can bring a server back: no probe or bar keeps it out, nor does the traffic by what
    probes disprove. Where the board doesn't know that a worker has it out, nothing else can either.
    """
    against = {source: said["reason"] for source, said in record.sources.items() if said["status"] == "unhealthy"}
    return against.keys() <= {"traffic"} and against.get("traffic") not in NO_CONNECTION


def _doubted(record: Record, before: Memory, outcome: Outcome) -> int:
    """When the traffic found that no connection could be made, where it stands by that; else 0. That answers broke off
    is that too, once a probe has found no connection since, or none that lasts: a proxy may take it.
    """
    said = record.memory("traffic")
    at = int(said["at"]) if said.get("status") == "unhealthy" else 0
    if said.get("reason") == BROKEN_OFF:
        return at if at == before.doubted or outcome.failure in NO_CONNECTION | {BROKEN_OFF} else 0
    return at if said.get("reason") in NO_CONNECTION else 0


def _is_forgotten(record: Record, now: float) -> bool:
    """Whether the traffic has called it degraded, and not for long."""
    said = record.memory("traffic")
    return said.get("status") == "degraded" and now - int(said["at"]) > FORGOTTEN_MS
