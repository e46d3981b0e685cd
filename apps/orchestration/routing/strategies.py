"""The strategies: each puts the servers of a tier into an order. Pure.

What a strategy remembers from one request to the next are its cursors: numbers by server, which come in and go out.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.pace import FASTEST, Pace

if TYPE_CHECKING:
    from apps.orchestration.routing.plan import Needs, Sight

Cursors = Mapping[str, float]
Tier = Sequence[tuple[Server, int]]
Arranged = tuple[tuple[Server, ...], Cursors]
Strategy = Callable[[Model, Tier, "Sight", Cursors, "Needs"], Arranged]

KEEPS, CHANCE, FREE = 1.1, 1.0, 5
"""Times its share of what all servers got lately, standard deviations of that (a worker sees but some of the requests,
by chance) and requests besides: from there on a server lets go of conversations.
"""
REMEMBERED = 100
"""Requests for each server after which earlier ones count for half."""
SPREAD, ONES = 0xFF51AFD7ED558CCD, 2**53 - 1
"""What 64 bits are multiplied by, whose product's halves are then laid over each other (as wyhash does), and the bits
that are taken of it.
"""
FOREMOST = -1.0
"""A score that wins against all that are drawn."""
UNPROVEN = 60.0
"""Seconds that an answer is taken to need of a server that has not given any, once it works at one."""
TURN = "#"
"""The cursor that counts requests."""


def weighted_round_robin(_model: Model, tier: Tier, sight: "Sight", cursors: Cursors, _needs: "Needs") -> Arranged:
    """Smooth weighted round robin as nginx has it (ngx_http_upstream_round_robin): each turn every server gains its
    weight, the one with the most goes first and pays the sum.
    """
    places, cursors = _take_turns(tier, cursors, sight.number)
    return _at(places, tier), cursors


def least_busy(_model: Model, tier: Tier, sight: "Sight", cursors: Cursors, _needs: "Needs") -> Arranged:
    """Who has the fewest requests for its weight; equals take turns."""
    places, cursors = _take_turns(tier, cursors, sight.number)
    in_flight = sight.in_flight
    busy = [in_flight.get(server.server_id, 0) / weight for server, weight in tier]
    return _at(sorted(places, key=busy.__getitem__), tier), cursors


def _take_turns(tier: Tier, cursors: Cursors, number: int) -> tuple[Sequence[int], Cursors]:
    """The places in a tier in the order of the round robin. Of equals each worker, by its number, begins with another
    one: else all workers together would be ahead of the shares by the same server.
    """
    if len(tier) == 1:
        return (0,), {}
    try:
        gained, paid = _gain(tier, cursors)
    except KeyError:  # one has come, as all have at first
        begin = {server.server_id: (number - place) % -len(tier) / len(tier) for place, (server, _) in enumerate(tier)}
        gained, paid = _gain(tier, {**begin, **cursors})
    places = _places(list(gained.values()), reverse=True)
    gained[tier[places[0]][0].server_id] -= paid
    return places, gained


def _gain(tier: Tier, cursors: Cursors) -> tuple[dict[str, float], int]:
    """What each server has when it has gained its weight, and the weights' sum. One loop: each request runs it."""
    gained, total = {}, 0
    for server, weight in tier:
        name = server.server_id
        gained[name] = cursors[name] + weight
        total += weight
    return gained, total


def peak_ewma(model: Model, tier: Tier, sight: "Sight", cursors: Cursors, needs: "Needs") -> Arranged:
    """Of two servers the one that would answer first: average time, rising at once, times requests under way.

    Power of two choices (Mitzenmacher, 2001) over a peak EWMA as in Finagle. The two are told by the number of the
    request, so that the same comes out again. A server that has not answered yet is tried first, by one request at a
    time.
    """
    turn = int(cursors.get(TURN, 0))
    costs = _costs(tier, sight.paces.of(model.name, needs.streams), sight)
    places = _places(costs)
    if len(tier) > 2:
        drawn = crc32(turn.to_bytes(8, "big"))
        first, step = drawn % len(tier), 1 + drawn // len(tier) % (len(tier) - 1)
        winner = min(first, (first + step) % len(tier), key=costs.__getitem__)
        places.remove(winner)
        places.insert(0, winner)
    return _at(places, tier), {TURN: (turn + 1) % 2**32}


def _costs(tier: Tier, paces: Mapping[str, Pace], sight: "Sight") -> list[float]:
    """How long each server would take, for its weight."""
    now, in_flight = sight.now, sight.in_flight
    return [
        _seconds(paces.get(server.server_id), now, held := in_flight.get(server.server_id, 0)) * (held + 1) / weight
        for server, weight in tier
    ]


def _seconds(pace: Pace | None, now: float, in_flight: int) -> float:
    """What an answer takes. An average is forgotten while nobody asks. Who is asked and silent has it still, and who
    has never answered is as slow as may be: else the less a server answers, the more it would get.
    """
    if not in_flight:
        return max(FASTEST, pace.average_at(now)) if pace else 0.0
    return pace.average if pace and pace.average else UNPROVEN


def affinity(model: Model, tier: Tier, sight: "Sight", cursors: Cursors, needs: "Needs") -> Arranged:
    """The same conversation to the same server: rendezvous hashing (Thaler, Ravishankar, 1998) with bounded load
    (Mirrokni, Thorup, Zadimoghaddam, 2018).

    A server gets no new conversation while it has its share of those that this worker has sent anywhere lately: by what
    all have sent, which is always a little old, they would all fill the same server at once. It keeps those it has
    until its requests are a tenth above their share, and not by chance. Who has been sent elsewhere stays there
    (`sight.homes`); one that goes on, of which that is not known, is taken to be where hashing alone sends it.
    """
    if needs.affinity is None or len(tier) == 1:
        return weighted_round_robin(model, tier, sight, cursors, needs)
    drawn, home = needs.affinity, sight.homes.get(needs.affinity)
    got = {server.server_id: max(0.0, cursors.get(server.server_id, 0.0)) for server, _ in tier}
    scores, settled = _scores(drawn, tier), sight.settled(model.name)
    if home is None and needs.continues:
        home = _lowest(scores, tier).server_id
    if home in got:
        scores[list(got).index(home)] = FOREMOST
    shares = sum([weight for _, weight in tier])
    total, conversations = sum(got.values()) + 1, sum([settled.get(name, 0) for name in got]) + 1

    def has_room(one: tuple[Server, int]) -> bool:
        name, share = one[0].server_id, one[1] / shares
        fair = total * share
        if got[name] + 1 > FREE + KEEPS * fair + CHANCE * math.sqrt(fair):
            return False
        return name == home or settled.get(name, 0) < conversations * share

    ranked = [tier[place] for place in _places(scores)]
    first, _ = next(filter(has_room, ranked), None) or min(tier, key=lambda one: got[one[0].server_id] / one[1])
    got[first.server_id] += 1
    if total >= REMEMBERED * len(tier):
        got = {name: count / 2 for name, count in got.items()}
    return (first, *[server for server, _ in ranked if server is not first]), got


def favourite(drawn: int, tier: Tier) -> Server:
    """Where hashing alone sends a conversation."""
    return _lowest(_scores(drawn, tier), tier)


def _scores(drawn: int, tier: Tier) -> list[float]:
    """Weighted rendezvous: the lowest wins, each as often as its weight says. None is below 0."""
    log, unit = math.log, 2.0**-53
    products = [(drawn ^ _number(server.server_id)) * SPREAD for server, _ in tier]
    mixed = [(product ^ product >> 64) >> 11 & ONES for product in products]
    return [-log((number + 0.5) * unit) / weight for number, (_, weight) in zip(mixed, tier, strict=True)]


def _lowest(scores: Sequence[float], tier: Tier) -> Server:
    return tier[scores.index(min(scores))][0]


def _places(keys: Sequence[float], *, reverse: bool = False) -> list[int]:
    """The places in a tier by their keys; equals stay as they are. Such a key costs no call of a Python function."""
    return sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)


def _at(places: Sequence[int], tier: Tier) -> tuple[Server, ...]:
    return tuple([tier[place][0] for place in places])


@lru_cache(maxsize=4096)
def _number(server_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(server_id.encode(), digest_size=8).digest(), "big")


STRATEGIES: Mapping[str, Strategy] = {
    "weighted_round_robin": weighted_round_robin,
    "least_busy": least_busy,
    "peak_ewma": peak_ewma,
    "affinity": affinity,
}
