"""One worker's router: what the pure planner is asked with, and what it remembers from one request to the next."""

import time
from collections import Counter

from apps.orchestration.fleet import Fleet, Model
from apps.orchestration.health.pace import Paces
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.watch import Watch
from apps.orchestration.routing.plan import (
    ANYTHING,
    ONLY,
    Candidates,
    Fit,
    Needs,
    Plan,
    Sight,
    find_candidates,
    find_fit,
    order,
)
from apps.orchestration.routing.strategies import Cursors, favourite
from citadel.sections import RoutingSection

FRESH = 1.0
"""Seconds for which candidates are kept though nothing has moved: weights change with time and load."""
USUAL_HOLD = 1.0
"""Seconds for which a place is held, until this worker knows better."""
NEW_HOLD = 0.1
"""Share that the newest has in what is usual."""
Whose = tuple[str, str, bool, frozenset[str]]
"""Model, strategy, whether requests are of a conversation, and who alone can serve them: what is counted of the one
says nothing to the other.
"""


class Router:
    """Plans requests for one worker of so many."""

    def __init__(self, standings: Standings, watch: Watch, routing: RoutingSection, workers: int = 1):
        self.paces = Paces()
        self.in_flight: Counter[str] = Counter()
        """Requests of this worker under way, by server."""
        self._holds: dict[str, float] = {}
        self._unknown: dict[str, dict[object, float]] = {}
        """Of models of which no request has ended yet, those that run, and since when (monotonic)."""
        self._standings = standings
        self._watch = watch
        self._routing = routing
        self._workers = workers
        self._cursors: dict[Whose, Cursors] = {}
        self._homes = watch.homes
        self._known: dict[tuple[str, frozenset[str], bool, str], tuple[Candidates, Model]] = {}
        self._fits: dict[tuple[str, frozenset[str]], tuple[Fit, Model]] = {}
        self._as_of: tuple[int, object, object] = (0, None, None)
        """What that, and what the sight holds of weights, has been worked out from."""
        self._until = 0.0
        """From when on both are worked out anew in any case."""
        self._sight = self._look()

    def plan(self, model: Model, needs: Needs = ANYTHING) -> Plan:
        """The servers for one request, in order; the next one gets others first."""
        if len(model.servers) == 1:
            if self._is_plain(model):
                return _only(model)
            needs = _of_only(needs)
        sight = self.sight()
        candidates = self._candidates(model, needs, sight)
        whose = self._whose_cursors(model, needs, candidates)
        plan, self._cursors[whose] = order(model, candidates, sight, self._cursors.get(whose, {}), needs)
        if needs.affinity is not None and plan.order:
            self._remember(model, needs.affinity, needs.continues, plan, candidates)
        return plan

    def strategy_of(self, model: Model) -> str:
        """By which the servers of a model are ordered."""
        return (model.model_class.strategy if model.model_class else "") or self._routing.strategy

    def explain(self, model: Model, needs: Needs = ANYTHING) -> tuple[Plan, Candidates]:
        """What `plan` would give, and nothing is remembered of it."""
        sight = self.sight()
        needs = _of_only(needs) if len(model.servers) == 1 else needs
        candidates = find_candidates(model, sight, needs)
        if len(model.servers) == 1 and self._is_plain(model):
            return _only(model), candidates
        cursors = self._cursors.get(self._whose_cursors(model, needs, candidates), {})
        return order(model, candidates, sight, cursors, needs)[0], candidates

    def takes(self, model: str, request: object, now: float) -> None:
        """A request to `model` has its place on a server from now on."""
        if model not in self._holds:
            self._unknown.setdefault(model, {})[request] = now

    def leaves(self, model: str, request: object) -> None:
        """It has it no more, for whatever reason."""
        if running := self._unknown.get(model):
            running.pop(request, None)

    def held(self, model: str, seconds: float) -> None:
        """A request to `model` has had its place on a server for so long, to the end of its answer."""
        self._unknown.pop(model, None)
        usual = self._holds.get(model, seconds)
        self._holds[model] = usual + (seconds - usual) * NEW_HOLD

    def usual_hold(self, model: str) -> float:
        """Seconds for which a request to `model` usually has its place; where none has ended yet, at least as long as
        the first of those that run has had it.
        """
        known = self._holds.get(model)
        if known is not None:
            return known
        running = self._unknown.get(model)
        return max(USUAL_HOLD, time.monotonic() - next(iter(running.values()))) if running else USUAL_HOLD

    def sight(self) -> Sight:
        """What this worker sees now; the same object with each request, as to make one costs as much as to plan."""
        watch, now = self._watch, time.monotonic()
        self._keep_up(now)
        sight = self._sight
        sight.now, sight.clock_ms, sight.number = now, watch.clock_ms, watch.number % self._workers
        return sight

    def _look(self) -> Sight:
        return Sight(
            self._standings,
            now=0.0,
            records=self._watch.records,
            loads=self._watch.loads,
            paces=self.paces,
            in_flight=self.in_flight,
            homes=self._homes.known,
            settled=self._homes.settled,
            strategy=self._routing.strategy,
            slow_start=self._routing.slow_start,
            hedge_budget=self._routing.hedge_budget,
        )

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet, and drops what is no longer in it."""
        self.paces.forget_all_but(fleet.holders)
        self._cursors = {
            whose: cursors
            for whose, cursors in self._cursors.items()
            if whose[0] in fleet.models and whose[3] <= fleet.servers.keys()
        }
        self._fits.clear()
        self._holds = {model: usual for model, usual in self._holds.items() if model in fleet.models}
        self._unknown = {model: running for model, running in self._unknown.items() if model in fleet.models}
        self._forget()
        self._homes.forget_all_but(fleet.models)
        self._homes.in_use = any(self.strategy_of(model) == "affinity" for model in fleet.models.values())

    def _whose_cursors(self, model: Model, needs: Needs, candidates: Candidates) -> Whose:
        return model.name, self.strategy_of(model), needs.affinity is not None, candidates.only

    def _is_plain(self, model: Model) -> bool:
        """Whether nothing speaks against a model's only server."""
        [only] = model.servers
        bound = model.model_class is not None and model.model_class.own is not None
        return only.state == "active" and not bound and self._standings.in_rotation(only.server_id)

    def _keep_up(self, now: float) -> None:
        """Forgets what was worked out from what is no longer so, and after a while in any case."""
        version, records, loads = self._as_of
        watch = self._watch
        moved = version != self._standings.version or records is not watch.records or loads is not watch.loads
        if moved or now >= self._until:
            self._as_of = (self._standings.version, watch.records, watch.loads)
            self._until = now + FRESH
            self._forget()

    def _forget(self) -> None:
        self._known.clear()
        self._sight = self._look()

    def _candidates(self, model: Model, needs: Needs, sight: Sight) -> Candidates:
        """Kept by what most requests have in common."""
        if needs.tokens and model.context_length and needs.tokens > model.context_length:
            return find_candidates(model, sight, needs)
        key = (model.name, needs.capabilities, needs.streams, needs.endpoint)
        known = self._known.get(key)
        if known and known[1] is model:
            return known[0]
        needs = needs._replace(tokens=0)  # so many any of its servers takes
        found = find_candidates(model, sight, needs, self._fit(model, needs))
        self._known[key] = (found, model)
        return found

    def _fit(self, model: Model, needs: Needs) -> Fit:
        """Kept until there is a new snapshot of the fleet."""
        key = (model.name, needs.capabilities)
        known = self._fits.get(key)
        if known and known[1] is model:
            return known[0]
        fit = find_fit(model, needs)
        self._fits[key] = (fit, model)
        return fit

    def _remember(self, model: Model, affinity: int, continues: bool, plan: Plan, candidates: Candidates) -> None:
        """Where a conversation has gone; not where it is but supposed to be at home: another worker may know better."""
        server_id = plan.order[0].server_id
        guessed = continues and affinity not in self._homes.known
        if not guessed or server_id != favourite(affinity, candidates.tiers[0]).server_id:
            self._homes.remember(affinity, server_id, model.name)


def _of_only(needs: Needs) -> Needs:
    """What is needed of a model's only server: it decides for itself what it can do."""
    return needs._replace(capabilities=ANYTHING.capabilities, tokens=0)


def _only(model: Model) -> Plan:
    return Plan(model.servers, strategy=ONLY)
