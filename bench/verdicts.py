"""What the rows mean: ratios and differences, each with its target beside it."""

import math
import operator
from collections.abc import Callable, Mapping

import msgspec

from bench.fleet import Fleet
from bench.measurement import middle
from bench.rounds import Row, Sample
from bench.routing import HOLDERS

Rows = Mapping[tuple[str, str], Row]
LOAD_BOUND = 0.95  # a server that uses less of its core than this was waiting for the load generator


class Verdict(msgspec.Struct, frozen=True):
    """One judged figure. ``low`` and ``high`` are its extremes over the rounds."""

    name: str
    value: float
    low: float
    high: float
    relation: str
    target: float
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps its target."""
        compare = operator.ge if self.relation == ">=" else operator.le
        return bool(compare(self.value, self.target))


def verdicts(rows: Rows) -> list[Verdict]:
    """Judge what has been measured; figures whose rows are missing are left out."""
    citadel = {case: row for (case, target), row in rows.items() if target == "citadel"}
    rss = max((row.rss_mb for row in citadel.values()), default=math.nan)
    found = [
        _ratio("chat: Citadel / relay", rows, ("chat", "citadel"), ("chat", "relay"), 0.5),
        _ratio("chat: relay's CPU / Citadel's", rows, ("chat", "citadel"), ("chat", "relay"), 0.5, _cpu_speed),
        _ratio("streams: Citadel / relay", rows, ("streams", "citadel"), ("streams", "relay"), 0.7),
        _ratio("streams-paced: relay's CPU / Citadel's", rows, *_PACED, 0.7, _cpu_speed),
        _ratio("chat: relay / nginx at a full core", rows, ("chat", "relay"), ("chat", "nginx"), 0.1, _full_core_rate),
        _ratio("chat: three servers with limits / one without", rows, *_PLACED, 0.85),
        _ratio("chat: with access and limits / without", rows, *_GUARDED, 0.8),
        _added("a signed request, simple form: added p50", citadel.get("chat-signed")),
        _added("a signed request, RFC 9421: added p50", citadel.get("chat-signed-message")),
        _ratio("chat: cached / uncached", rows, ("chat-cached", "citadel"), ("chat", "citadel"), 1.3),
        _ratio("embeddings: cached / uncached", rows, *_EMBEDDINGS, 1.3),
        _added_latency(rows),
        _single("chat: p99 at 16 connections", rows.get(("chat", "citadel")), lambda s: s.result.p99, 10.0, "ms"),
        Verdict("memory of a worker", rss, rss, rss, "<=", 160.0, "MB") if citadel else None,
        _single(
            "memory's growth over the memory case",
            citadel.get("memory"),
            lambda s: s.rss_mb - s.rss_before_mb,
            10.0,
            "MB",
        ),
    ]
    return [verdict for verdict in found if verdict]


def of_fleet(fleet: Fleet) -> list[Verdict]:
    """Judge what a large fleet costs. A model that all servers hold is shown and not judged."""
    found = []
    for one in fleet.decisions:
        if one.holders == HOLDERS[0]:
            name = f"a routing decision by {one.strategy}: p99"
            found.append(Verdict(name, one.p99, one.p99, one.p99, "<=", 200.0, "us"))
    if fleet.heartbeats:
        share, relayed = fleet.heartbeats.share, fleet.heartbeats.relay_share
        found.append(Verdict("1,000 servers' heartbeats: share of a core", share, share, share, "<=", 2.0, "%"))
        if relayed:
            ratio = share / relayed
            found.append(Verdict("heartbeats / the relay's requests at that pace", ratio, ratio, ratio, "<=", 1.0))
    return found


_PLACED = (("chat-placed", "citadel"), ("chat-busy", "citadel"))
_GUARDED = (("chat-busy", "citadel"), ("chat-busy", "unguarded"))
_PACED = (("streams-paced", "citadel"), ("streams-paced", "relay"))
_EMBEDDINGS = (("embeddings-cached", "citadel"), ("embeddings", "citadel"))


def _rate(sample: Sample) -> float:
    return sample.result.rate


def _cpu_speed(sample: Sample) -> float:
    return sample.result.units / sample.server_cpu_seconds if sample.server_cpu_seconds else math.nan


def _full_core_rate(sample: Sample) -> float:
    """The rate, and for a server that was not kept busy the one it would reach if it were."""
    busy = sample.server_cpu_seconds / sample.result.seconds
    return sample.result.rate / busy if 0 < busy < LOAD_BOUND else sample.result.rate


def _judged(name: str, values: list[float], relation: str, target: float, unit: str = "") -> Verdict:
    return Verdict(name, middle(values), min(values), max(values), relation, target, unit)


def _ratio(
    name: str,
    rows: Rows,
    of: tuple[str, str],
    to: tuple[str, str],
    target: float,
    figure: Callable[[Sample], float] = _rate,
) -> Verdict | None:
    """Divide a figure of one row by that of another, pair by pair of the same round."""
    if of not in rows or to not in rows:
        return None
    pairs = zip(rows[of].samples, rows[to].samples, strict=False)
    return _judged(name, [figure(one) / figure(other) for one, other in pairs], ">=", target)


def _single(name: str, row: Row | None, figure: Callable[[Sample], float], target: float, unit: str) -> Verdict | None:
    return _judged(name, [figure(sample) for sample in row.samples], "<=", target, unit) if row else None


def _added(name: str, row: Row | None) -> Verdict | None:
    """Take the p50 of the requests between them from that of those that the case is about."""
    return _single(name, row, lambda s: 1000 * (s.result.p50 - s.result.p50_compared), 300.0, "us")


def _added_latency(rows: Rows) -> Verdict | None:
    """Take the upstream's p50 from Citadel's, both at the same fixed rate."""
    citadel, upstream = rows.get(("chat-fixed-rate", "citadel")), rows.get(("chat-fixed-rate", "upstream"))
    if not citadel or not upstream:
        return None
    pairs = zip(citadel.samples, upstream.samples, strict=False)
    added = [one.result.p50 - other.result.p50 for one, other in pairs]
    return _judged("added p50 at a quarter of its maximum", added, "<=", 1.5, "ms")
