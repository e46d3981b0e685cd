"""A pure function from what is known to an ordered list of servers to try, and why each other one is not in it.

Who may, whose class it is, who has the model in memory; among those the strategy decides (`strategies.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from apps.orchestration.fleet import Model, ModelClass, Server
from apps.orchestration.health.conditions import Loads, Records
from apps.orchestration.health.pace import Paces
from apps.orchestration.health.passive import Standings
from apps.orchestration.routing.strategies import STRATEGIES, Cursors, Tier
from apps.orchestration.routing.weights import slowness, spare, started, weigh

SAYS = ", says "
ONLY = "only"
"""Instead of a strategy: a model has but one server, and that is well."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A server that was not considered, and why."""

    server_id: str
    reason: str
    is_away: bool = False
    """Whether that is for now: it is out, or drains."""

    @property
    def outline(self) -> str:
        """The reason without the words of who found it, in which hosts and paths may stand."""
        return self.reason.partition(SAYS)[0]


class Needs(NamedTuple):
    """What a request needs of its server."""

    capabilities: frozenset[str] = frozenset()
    tokens: int = 0
    """At least, of context; 0 where that is not known."""
    affinity: int | None = None
    """A digest of what it has in common with the requests before it: the same goes to the same server."""
    streams: bool = False
    continues: bool = False
    """Whether there have been requests before it for sure."""
    endpoint: str = ""
    """By which it comes; a server may not have got each."""


HELPERS_REST = 30.0
"""Seconds longer that a server is left alone which is out and only to help, while others don't need it."""
ANYTHING = Needs()
NOBODY = frozenset[str]()


@dataclass(slots=True)  # nobody changes one; to be frozen would cost each request as much as the choice of its server
class Sight:
    """What a worker sees of the servers at a moment. `now` is monotonic, in seconds."""

    standings: Standings
    now: float
    records: Records = field(default_factory=dict)
    loads: Loads = field(default_factory=dict)
    paces: Paces = field(default_factory=Paces)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """This worker's requests, by server."""
    homes: Mapping[int, str] = field(default_factory=dict)
    """Where conversations have gone, by what they have in common."""
    settled: Callable[[str], Mapping[str, float]] = lambda _model: {}
    """How many conversations with a model this worker has sent to each server lately."""
    number: int = 0
    """Which of the workers this one is."""
    clock_ms: float = 0.0
    """What is added to monotonic milliseconds to get the board's."""
    strategy: str = "weighted_round_robin"
    slow_start: float = 30.0
    hedge_budget: float = 0.0
    """Backup requests that are made, as a share of the requests of the classes that have such."""
    factors: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    """By server, what of its weight follows from `records` and `loads` and has been worked out (`weights.py`)."""


class Plan(NamedTuple):
    """Servers in the order in which to try them. `retry_after` is in seconds, where there are none."""

    order: tuple[Server, ...]
    dropped: tuple[Dropped, ...] = ()
    trial: Server | None = None
    """An ejected server that may be tried before the others, by whoever gets the turn."""
    retry_after: float = 0.0
    strategy: str = ""
    lacking: str = ""
    """What the request needs and no server of the model has."""


class Fit(NamedTuple):
    """Who of a model's servers may serve requests of some kind, as far as the fleet says: it changes only with that."""

    able: tuple[Server, ...]
    foreign: frozenset[str]
    """Those that are to help only: they are not the class's own."""
    dropped: tuple[Dropped, ...]
    lacking: str = ""
    only: frozenset[str] = NOBODY
    """Ids of those, where they are not all of its servers: requests that only they can serve are a kind of their own,
    of which turns are taken by themselves.
    """


class Candidates(NamedTuple):
    """Who may serve a model's requests of some kind, until something about the servers changes."""

    tiers: tuple[Tier, ...]
    """Servers with their weights; those of a later tier come after all of the earlier."""
    dropped: tuple[Dropped, ...]
    out: tuple[Server, ...]
    """Servers that would be there if they were not out."""
    lacking: str = ""
    paused: frozenset[str] = frozenset()
    """Those that are last because they asked for it."""
    must_load: frozenset[str] = frozenset()
    """Those that say that the model is not in their memory."""
    unneeded: frozenset[str] = frozenset()
    """Those that are to help only, while any of the class's own takes requests."""
    only: frozenset[str] = NOBODY
    """As of the `Fit`."""


def make_plan(model: Model, sight: Sight, cursors: Cursors, needs: Needs = ANYTHING) -> tuple[Plan, Cursors]:
    """Orders the servers of `model`. Gives the plan and the cursors for the next request."""
    return order(model, find_candidates(model, sight, needs), sight, cursors, needs)


def find_fit(model: Model, needs: Needs = ANYTHING) -> Fit:
    """The active servers of a model that have what is needed and whose class allows it."""
    dropped: list[Dropped] = []
    able, lacking = _able(model, needs, dropped)
    able, foreign = _of_class(model.model_class, able, dropped)
    if len(able) == len(model.servers):
        return Fit(model.servers, foreign, tuple(dropped), lacking)
    return Fit(tuple(able), foreign, tuple(dropped), lacking, frozenset([server.server_id for server in able]))


def find_candidates(model: Model, sight: Sight, needs: Needs = ANYTHING, fit: Fit | None = None) -> Candidates:
    """Who may serve: active, not out, able; with weights, the class's own first, of them and of the others who has the
    model in memory, and those last who asked for a pause. `fit` is what `find_fit` gives, where that is known.
    """
    able, foreign, unfit, lacking, only = fit or find_fit(model, needs)
    standings = sight.standings
    present: list[Server] = []
    out: list[Server] = []
    for server in able:
        (present if standings.in_rotation(server.server_id) else out).append(server)
    dropped = (*unfit, *[Dropped(server.server_id, _why_out(server, sight), is_away=True) for server in out])
    cold = _without(model.name, able, sight.loads)
    resting = _resting(model, present, sight, needs.endpoint) if standings.pauses else NOBODY
    slow = slowness(model, sight, needs.streams)
    weighed = tuple(zip(present, weigh(model, present, sight, slow), strict=True))
    tiers = tuple([spare(model, tier, sight, needs.streams, slow) for tier in _tiers(weighed, foreign, cold, resting)])
    if not foreign:
        return Candidates(tiers, dropped, tuple(out), lacking, resting, cold, NOBODY, only)
    is_led = any(server.server_id not in foreign | resting for server in present)
    eased = _eased(tiers, foreign, resting, sight)
    return Candidates(eased, dropped, tuple(out), lacking, resting, cold, foreign if is_led else NOBODY, only)


def order(
    model: Model, candidates: Candidates, sight: Sight, cursors: Cursors, needs: Needs = ANYTHING
) -> tuple[Plan, Cursors]:
    """Puts the candidates into the order of their class's strategy."""
    trial = _find_trial(candidates, sight)
    if not candidates.tiers:
        return _without_any(candidates, trial, sight), cursors
    name = (model.model_class.strategy if model.model_class else "") or sight.strategy
    arrange = STRATEGIES[name]
    first, *later = candidates.tiers
    servers, moved = arrange(model, first, sight, cursors, needs)
    for tier in later:
        more, theirs = arrange(model, tier, sight, cursors, needs)
        servers += more
        moved = {**moved, **theirs}  # they take turns too, for when the first are full or fail
    return Plan(servers, candidates.dropped, trial, strategy=name), moved


def _able(model: Model, needs: Needs, dropped: list[Dropped]) -> tuple[list[Server], str]:
    """The active servers that have what is needed, and what is lacking where none has."""
    active = [server for server in model.servers if server.state == "active"]
    if len(active) < len(model.servers):
        dropped += [
            Dropped(server.server_id, server.state, is_away=server.state == "draining")
            for server in model.servers
            if server.state != "active"
        ]
    if not (needs.capabilities or needs.tokens):
        return active, ""
    lacks = {server.server_id: reason for server in active if (reason := _lacks(model, server, needs))}
    dropped += [Dropped(name, f"lacks {reason}") for name, reason in lacks.items()]
    able = [server for server in active if server.server_id not in lacks]
    return able, "" if able or _comes_back(model, needs) else next(iter(lacks.values()), "")


def _comes_back(model: Model, needs: Needs) -> bool:
    """Whether a server has what is needed that takes no new requests for now."""
    return any(server.state == "draining" and not _lacks(model, server, needs) for server in model.servers)


def _lacks(model: Model, server: Server, needs: Needs) -> str:
    """What a request needs and a server says that it has not; what it doesn't say is taken for a yes."""
    holding = model.holdings.get(server.server_id)
    if holding is None:
        return ""
    if needs.capabilities and holding.capabilities is not None and not needs.capabilities <= holding.capabilities:
        return ", ".join(sorted(needs.capabilities - holding.capabilities))
    if holding.context_length and needs.tokens > holding.context_length:
        return f"a context of {needs.tokens} tokens"
    return ""


def _of_class(
    model_class: ModelClass | None, able: list[Server], dropped: list[Dropped]
) -> tuple[list[Server], frozenset[str]]:
    """Who may serve a class's models, and which of them are to help only: they are not its own."""
    if model_class is None or model_class.own is None:
        return able, NOBODY
    foreign = frozenset([server.server_id for server in able]) - model_class.own
    if model_class.fallback or not foreign:
        return able, foreign
    reason = f"not of class {model_class.name}"
    dropped += [Dropped(server.server_id, reason) for server in able if server.server_id in foreign]
    return [server for server in able if server.server_id not in foreign], NOBODY


def _why_out(server: Server, sight: Sight) -> str:
    record = sight.records.get(server.server_id)
    if record and record.status == "unhealthy":
        return f"unhealthy{SAYS}{record.finder}: {record.reason}"
    return "ejected"


def _without(model: str, servers: Sequence[Server], loads: Loads) -> frozenset[str]:
    """Which of them say that the model is not in their memory; who doesn't tell is taken to have it."""
    found = [
        server.server_id for server in servers if (load := loads.get(server.server_id)) and load.has(model) is False
    ]
    return frozenset(found)


def _resting(model: Model, servers: Sequence[Server], sight: Sight, endpoint: str) -> frozenset[str]:
    """Which of them have asked for a pause."""
    pauses, now = sight.standings.pauses, sight.now
    names = [server.server_id for server in servers]
    return frozenset([name for name in names if pauses.is_paused(name, model.name, now, endpoint=endpoint)])


def _tiers(weighed: Tier, foreign: frozenset[str], cold: frozenset[str], resting: frozenset[str]) -> tuple[Tier, ...]:
    """Those that asked for no pause before those that did, of these the class's own before others, of these those that
    have the model in memory before those that haven't.
    """
    if not (foreign or cold or resting):
        return (weighed,) if weighed else ()
    tiers: dict[tuple[bool, bool, bool], list[tuple[Server, int]]] = {}
    for one in weighed:
        name = one[0].server_id
        tiers.setdefault((name in resting, name in foreign, name in cold), []).append(one)
    return tuple([tuple(tiers[rank]) for rank in sorted(tiers)])


def _eased(tiers: tuple[Tier, ...], foreign: frozenset[str], resting: frozenset[str], sight: Sight) -> tuple[Tier, ...]:
    """The tiers of a class that others help; where all of its own have just come back, the others' first goes on with
    the work that the first don't take yet.
    """
    leaders = [tier[0][0].server_id for tier in tiers]
    place = next((n for n, name in enumerate(leaders) if name in foreign and name not in resting), 0)
    if not place:
        return tiers
    own, others = tiers[0], tiers[place]
    all_shares = [started(sight.records.get(server.server_id), sight) for tier in tiers[:place] for server, _ in tier]
    if max(all_shares) == 1.0:
        return tiers
    shares = all_shares[: len(own)]
    left = sum([weight / share - weight for (_, weight), share in zip(own, shares, strict=True)])
    each = left / sum([weight for _, weight in others])
    helping = [(server, max(1, round(weight * each))) for server, weight in others]
    return ((*own, *helping), *tiers[1:place], *tiers[place + 1 :])


def _find_trial(candidates: Candidates, sight: Sight) -> Server | None:
    """The server that is out whose turn to be tried has come: while others serve, none that its probes say is down."""
    if not candidates.out:
        return None
    lonely = not candidates.tiers
    standings, now = sight.standings, sight.now

    def is_due(server: Server) -> bool:
        rests = HELPERS_REST if server.server_id in candidates.unneeded else 0.0
        due = standings.trial_due(server.server_id, now - rests, lonely=lonely)
        return due and (lonely or not _fails_probes(server, sight))

    due = filter(is_due, candidates.out)
    return min(due, key=lambda server: standings.retry_in(server.server_id, now), default=None)


def _fails_probes(server: Server, sight: Sight) -> bool:
    record = sight.records.get(server.server_id)
    return record is not None and any(
        record.memory(source).get("status") == "unhealthy" for source in ("probe", "heartbeat", "webhook")
    )


def _without_any(candidates: Candidates, trial: Server | None, sight: Sight) -> Plan:
    waits = [sight.standings.retry_in(server.server_id, sight.now, lonely=True) for server in candidates.out]
    retry_after = max(1.0, min(waits, default=30.0))
    return Plan((), candidates.dropped, trial, retry_after, lacking=candidates.lacking)
