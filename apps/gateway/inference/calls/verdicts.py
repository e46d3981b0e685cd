"""What follows for a server from how it has answered: by this worker's standings, and the board that all share."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import structlog

from apps.gateway.inference.calls.moves import Moves
from apps.gateway.inference.http.failures import CONNECT_TIMEOUT, MODEL_GONE, TOO_LATE, Failure
from apps.orchestration.fleet import Fleet, Model, Server
from apps.orchestration.health.board import Group
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from citadel.sections import RoutingSection

log = structlog.get_logger("citadel.verdicts")

ENOUGH_SILENCE = 2
"""Requests that wait in vain, over all workers and with no good answer in between: then a server hangs. Of a model's
only server as many as of any other failures.
"""


class Verdicts:
    """Takes note of answers and failures, and acts on what they come to."""

    def __init__(self, standings: Standings, watch: Watch, moves: Moves, routing: RoutingSection):
        self._standings = standings
        self._watch = watch
        self._moves = moves
        self._eject_after = routing.eject_after
        self._servers: Mapping[str, Server] = {}
        self._holders: dict[str, list[Model]] = {}
        """The models of each server."""

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        holders = defaultdict(list)
        for model in fleet.models.values():
            for server in model.servers:
                holders[server.server_id].append(model)
        self._servers, self._holders = fleet.servers, dict(holders)

    def succeeded(self, server: Server, *, whole: bool = True) -> None:
        """Takes note of a server that answers, or has begun to."""
        if not self.is_there(server):
            return
        take = self._standings.succeeded if whole else self._standings.begun
        verdict = take(server.server_id, time.monotonic())
        if verdict == "answers":
            self._watch.server_answers(server.server_id, whole=whole)
        elif verdict:
            log.info(f"server_{verdict}", server=server.server_id)
            self._watch.server_well(server.server_id)

    def failed(
        self,
        server: Server,
        reason: str,
        *,
        since: float | None = None,
        refused: bool = False,
        trial: bool = False,
        told: bool = False,
    ) -> bool:
        """Takes note of a server that doesn't; whether all workers count it among the failures in a row.

        `since`: when the request had begun to wait for its first byte (monotonic), where it did. `refused`: nothing
        could be sent, which ejects it at once; also when too many others are out where that is its own word, and no
        connection that was not made in time.
        """
        if not self.is_there(server):
            return False
        name, now = server.server_id, time.monotonic()
        groups = [] if refused and reason != CONNECT_TIMEOUT else self._groups(name)
        may_eject = self._may_eject(name, groups)
        alone = any(len(group.servers) == 1 for group in groups)
        verdict = self._standings.failed(
            name,
            now,
            refused=refused and may_eject,
            trial=trial,
            may_eject=may_eject,
            alone=alone,
            told=told,
        )
        if reason in TOO_LATE:
            self._standings.fell_silent(name, now if since is None else since)
        if verdict == "ejected":
            log.warning("server_ejected", server=name, reason=reason)
            self._watch.server_out(name, reason, groups)
            if reason == "timeout":  # nor will those get an answer who wait there now
                self._moves.move(name)
        elif verdict == "degraded":
            log.warning("server_degraded", server=name, reason=reason)
            self._watch.server_degraded(name, f"failures, the last one: {reason}")
        if verdict == "ejected" or not self._standings.in_rotation(name):
            return False
        if refused:  # it would be out at once
            self._standings.ask_last(name, now)
        return self._count(name, reason, groups if may_eject else None, alone=alone, told=told)

    def _count(self, name: str, reason: str, may_be_out: Sequence[Group] | None, *, alone: bool, told: bool) -> bool:
        """Counts a failure with all workers; whether it is one of those in a row."""
        most = self._eject_after
        if reason in TOO_LATE:
            enough = most if alone else min(ENOUGH_SILENCE, most)
            self._watch.server_silent(name, enough if reason == "timeout" else None, may_be_out)
        if reason == "timeout":  # requests that were sent together end together: only silences apart say anything
            return False
        self._watch.server_failed(name, reason, None if alone and told else most, may_be_out)
        return True

    def forgive(self, server: Server, *, counted: bool) -> None:
        """The last failure there was the request's own doing. `counted`: what `failed` gave."""
        self._standings.forgive(server.server_id)
        if counted:
            self._watch.failure_forgiven(server.server_id)

    def pause(self, server: Server, model: Model, failure: Failure) -> None:
        """Has a server asked last for a while that is busy, or says that it does not hold the model (any more)."""
        if not self.is_there(server):
            return
        name, gone = server.server_id, failure.reason == MODEL_GONE
        news = self._standings.pause(name, model.name if gone else "", time.monotonic(), failure.pause)
        if news and gone:
            log.warning("model_not_held", server=name, model=model.name)
            self._watch.models_moved(name)

    def is_there(self, server: Server) -> bool:
        """Whether it is still in the fleet, and at that address: else a call from before says nothing of who is now."""
        now = self._servers.get(server.server_id)
        return now is not None and now.url == server.url

    def _may_eject(self, name: str, groups: Sequence[Group]) -> bool:
        """Whether traffic has not taken out as many of a model's servers as it may, as far as this worker knows."""
        for group in groups:
            out = sum(not self._standings.in_rotation(server) for server in group.servers if server != name)
            if out + 1 > group.may_be_out:
                return False
        return True

    def _groups(self, name: str) -> list[Group]:
        """Traffic alone never takes out more than half of a model's servers, and one at least. Those that are gone are
        none of them: a dead one must not keep in another that hangs.
        """
        groups = []
        for model in self._holders.get(name, ()):
            living = [
                server.server_id
                for server in model.servers
                if server.server_id == name or (server.state == "active" and not self._is_gone(server.server_id))
            ]
            groups.append(Group(max(1, len(living) // 2), living))
        return groups

    def _is_gone(self, name: str) -> bool:
        record = self._watch.records.get(name)
        return record is not None and record.is_gone
