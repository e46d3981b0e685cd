"""What follows for a server from how it has answered: by this worker's standings, and the board that all share."""

import time
from collections.abc import Mapping, Sequence

import structlog

from apps.gateway.inference.calls.moves import Moves
from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import NO_ENDPOINT, NOT_HELD, OF_MODEL, TOO_LATE, Failure
from apps.orchestration.fleet import Fleet, Server
from apps.orchestration.health.evidence import NO_MATTER, Company, Evidence
from apps.orchestration.health.groups import Groups
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.standing import Verdict
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
        self._groups = Groups(standings.in_rotation, self._is_gone)

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        self._servers = fleet.servers
        self._groups.follow(fleet)

    def succeeded(self, server: Server, *, whole: bool = True, trial: bool = False) -> None:
        """Takes note of a server that answers, or has begun to."""
        if not self.is_there(server):
            return
        take = self._standings.succeeded if whole else self._standings.begun
        verdict = take(server.server_id, time.monotonic(), trial=trial)
        if verdict == "answers":
            self._watch.server_answers(server.server_id, whole=whole)
        elif verdict:
            log.info(f"server_{verdict}", server=server.server_id)
            self._watch.server_well(server.server_id)

    def failed(
        self,
        server: Server,
        reason: str,
        evidence: Evidence = "failed",
        *,
        since: float | None = None,
        trial: bool = False,
    ) -> bool:
        """Takes note of a server that doesn't; whether all workers count it among the failures in a row.

        `since`: when the request had begun to wait for its first byte (monotonic), where it did.
        """
        if not self.is_there(server):
            return False
        name, now = server.server_id, time.monotonic()
        company = NO_MATTER if evidence == "refused" else self._groups.company(name)
        verdict = self._standings.failed(name, now, evidence, company, trial=trial)
        if reason in TOO_LATE:
            self._standings.fell_silent(name, now if since is None else since)
        self._tell(name, verdict, reason, company)
        if verdict == "ejected" or not self._standings.in_rotation(name):
            return False
        if evidence == "unreachable":  # it would be out at once, and may not
            self._standings.ask_last(name, now)
        return self._count(name, reason, evidence, company)

    def _tell(self, name: str, verdict: Verdict, reason: str, company: Company) -> None:
        """Has all know what has become of a server that failed."""
        if verdict == "ejected":
            log.warning("server_ejected", server=name, reason=reason)
            self._watch.server_out(name, reason, company.groups)
            if reason == "timeout":  # nor will those get an answer who wait there now
                self._moves.move(name)
        elif verdict == "degraded":
            log.warning("server_degraded", server=name, reason=reason)
            self._watch.server_degraded(name, f"failures, the last one: {reason}")

    def _count(self, name: str, reason: str, evidence: Evidence, company: Company) -> bool:
        """Counts a failure with all workers; whether it is one of those in a row."""
        most = self._eject_after
        may_be_out = company.groups if company.may_eject else None
        if reason in TOO_LATE:
            enough = most if company.alone else min(ENOUGH_SILENCE, most)
            self._watch.server_silent(name, enough if reason == "timeout" else None, may_be_out)
        if reason == "timeout":  # requests that were sent together end together: only silences apart say anything
            return False
        doubtful = company.alone and evidence == "told"
        self._watch.server_failed(name, reason, None if doubtful else most, may_be_out)
        return True

    def forgive(self, server: Server, *, counted: bool) -> None:
        """The last failure there was the request's own doing. `counted`: what `failed` gave."""
        self._standings.forgive(server.server_id)
        if counted:
            self._watch.failure_forgiven(server.server_id)

    def pause(self, server: Server, exchange: Exchange, failure: Failure) -> None:
        """Has a server asked last for a while that is busy, or says that it has not got the model or the endpoint."""
        if not self.is_there(server):
            return
        name, model = server.server_id, exchange.model.name
        paused = model if failure.reason in OF_MODEL else ""
        endpoint = exchange.door.name if failure.reason == NO_ENDPOINT else ""
        news = self._standings.pause(name, paused, time.monotonic(), failure.pause, endpoint=endpoint)
        if news and endpoint:
            log.warning("endpoint_not_there", server=name, model=model, endpoint=endpoint)
        elif news and failure.reason in NOT_HELD:
            log.warning("model_not_held", server=name, model=model)
            self._watch.models_moved(name)

    def is_there(self, server: Server) -> bool:
        """Whether it is still in the fleet, and at that address: else a call from before says nothing of who is now."""
        now = self._servers.get(server.server_id)
        return now is not None and now.url == server.url

    def present(self, servers: Sequence[Server]) -> list[Server]:
        """Those of a plan from before that may take requests still, as they are now."""
        now = [self._servers[server.server_id] for server in servers if self.is_there(server)]
        in_rotation = self._standings.in_rotation
        return [server for server in now if server.state == "active" and in_rotation(server.server_id)]

    def _is_gone(self, name: str) -> bool:
        record = self._watch.records.get(name)
        return record is not None and record.is_gone
