"""A pure function from what is known to an ordered list of servers to try.

Smooth weighted round robin as nginx has it: each turn every server gains its weight, the one with the most goes first
and pays the sum. Cursors are those running numbers; they come in and go out, nothing is kept here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.passive import Standings

Cursors = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A server that was not considered, and why."""

    server_id: str
    reason: str


class Plan(NamedTuple):
    """Servers in the order in which to try them. `retry_after` is in seconds, where there are none."""

    order: tuple[Server, ...]
    dropped: tuple[Dropped, ...] = ()
    trial: str | None = None
    """The ejected server that the first attempt tries, if it is one."""
    retry_after: float = 0.0


def make_plan(model: Model, standings: Standings, cursors: Cursors, now: float) -> tuple[Plan, Cursors]:
    """Orders the servers of `model`. Gives the plan and the cursors for the next request."""
    only = model.servers[0]
    if len(model.servers) == 1 and only.state == "active" and standings.in_rotation(only.server_id):
        return Plan(model.servers), cursors
    active = [server for server in model.servers if server.state == "active"]
    fit = [server for server in active if standings.in_rotation(server.server_id)]
    dropped = tuple(
        Dropped(server.server_id, "ejected" if server.state == "active" else server.state)
        for server in model.servers
        if server not in fit
    )
    due = [
        server for server in active if server not in fit and standings.trial_due(server.server_id, now, lonely=not fit)
    ]
    trial = min(due, key=lambda server: standings.retry_in(server.server_id, now), default=None)
    if not fit:
        return _plan_without_any(active, trial, dropped, standings, now), cursors
    order, cursors = _smooth_order(fit, cursors)
    if trial:
        order = (trial, *order)
    return Plan(order, dropped, trial.server_id if trial else None), cursors


def _plan_without_any(
    active: list[Server], trial: Server | None, dropped: tuple[Dropped, ...], standings: Standings, now: float
) -> Plan:
    if trial:
        return Plan((trial,), dropped, trial.server_id)
    waits = [standings.retry_in(server.server_id, now, lonely=True) for server in active]
    return Plan((), dropped, retry_after=max(1.0, min(waits, default=30.0)))


def _smooth_order(servers: list[Server], cursors: Cursors) -> tuple[tuple[Server, ...], Cursors]:
    gained = {server.server_id: cursors.get(server.server_id, 0) + server.weight for server in servers}
    order = sorted(servers, key=lambda server: -gained[server.server_id])
    gained[order[0].server_id] -= sum(server.weight for server in servers)
    return tuple(order), gained
