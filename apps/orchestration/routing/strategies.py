"""The strategies: each puts the servers of a tier into an order. Pure.

What a strategy remembers from one request to the next are its cursors: numbers by server, which come in and go out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from zlib import crc32

from apps.orchestration.fleet import Model, Server
from apps.orchestration.health.pace import Key

if TYPE_CHECKING:
    from apps.orchestration.routing.plan import Needs, Sight

Cursors = Mapping[str, float]
Tier = Sequence[tuple[Server, int]]
Arranged = tuple[tuple[Server, ...], Cursors]
Strategy = Callable[[Model, Tier, "Sight", Cursors, "Needs"], Arranged]

KEEPS, FREE = 1.2, 5
"""Times its share of what all servers got lately, and requests besides: from there on a server lets go of
conversations.
"""
FIRST = 1
"""Conversations that any server may have above its share."""
REMEMBERED = 100
"""Requests for each server after which earlier ones count for half."""
TURN = "#"
"""The cursor that counts requests."""


def weighted_round_robin(_model: Model, tier: Tier, _sight: "Sight", cursors: Cursors, _needs: "Needs") -> Arranged:
    """Smooth weighted round robin as nginx has it (ngx_http_upstream_round_robin): each turn every server gains its
    weight, the one with the most goes first and pays the sum.
    """
    if len(tier) == 1:
        return (tier[0][0],), cursors
    gained = {server.server_id: cursors.get(server.server_id, 0) + weight for server, weight in tier}
    order = sorted([server for server, _ in tier], key=lambda server: -gained[server.server_id])
    gained[order[0].server_id] -= sum(weight for _, weight in tier)
    return tuple(order), gained


def least_busy(model: Model, tier: Tier, sight: "Sight", cursors: Cursors, needs: "Needs") -> Arranged:
    """Who has the fewest requests for its weight; equals take turns."""
    order, cursors = weighted_round_robin(model, tier, sight, cursors, needs)
    weights = {server.server_id: weight for server, weight in tier}
    in_flight = sight.in_flight
    return tuple(sorted(order, key=lambda s: in_flight.get(s.server_id, 0) / weights[s.server_id])), cursors


def peak_ewma(model: Model, tier: Tier, sight: "Sight", cursors: Cursors, needs: "Needs") -> Arranged:
    """Of two servers the one that would answer first: average time, rising at once, times requests under way.

    Power of two choices (Mitzenmacher, 2001) over a peak EWMA as in Finagle. The two are told by the number of the
    request, so that the same comes out again. A server that has not answered yet is tried first.
    """
    turn = int(cursors.get(TURN, 0))
    costs = {server.server_id: _cost(model, server, weight, sight, needs) for server, weight in tier}
    servers = [server for server, _ in tier]
    rest = sorted(servers, key=lambda server: costs[server.server_id])
    if len(servers) > 2:
        drawn = crc32(turn.to_bytes(8, "big"))
        first, step = drawn % len(servers), 1 + drawn // len(servers) % (len(servers) - 1)
        two = (servers[first], servers[(first + step) % len(servers)])
        winner = min(two, key=lambda server: costs[server.server_id])
        rest.remove(winner)
        rest.insert(0, winner)
    return tuple(rest), {TURN: (turn + 1) % 2**32}


def _cost(model: Model, server: Server, weight: int, sight: "Sight", needs: "Needs") -> float:
    pace = sight.paces.find(Key(model.name, server.server_id, needs.streams))
    waiting = sight.in_flight.get(server.server_id, 0) + 1
    return (pace.average if pace else 0.0) * waiting / weight


def affinity(model: Model, tier: Tier, sight: "Sight", cursors: Cursors, needs: "Needs") -> Arranged:
    """The same conversation to the same server: rendezvous hashing (Thaler, Ravishankar, 1998) with bounded load
    (Mirrokni, Thorup, Zadimoghaddam, 2018).

    A server gets no new conversation while more than its share of those of all workers have settled there lately. It
    keeps those it has until its requests are a fifth above their share. Who has been sent elsewhere stays there
    (`sight.homes`); one that goes on, of which that is not known, is taken to be where hashing alone sends it.
    """
    if needs.affinity is None or len(tier) == 1:
        return weighted_round_robin(model, tier, sight, cursors, needs)
    shares = sum(weight for _, weight in tier)
    got = {server.server_id: cursors.get(server.server_id, 0.0) for server, _ in tier}
    settled = sight.settled(model.name)
    total, conversations = sum(got.values()) + 1, sum(settled.get(name, 0) for name in got) + 1
    drawn, home = needs.affinity, sight.homes.get(needs.affinity)
    if home is None and needs.continues:
        home = favourite(drawn, tier).server_id

    def has_room(server: Server, weight: int) -> bool:
        name, share = server.server_id, weight / shares
        if got[name] + 1 > FREE + KEEPS * total * share:
            return False
        return name == home or settled.get(name, 0) < FIRST + conversations * share

    ranked = sorted(tier, key=lambda one: (one[0].server_id != home, _score(drawn, one[0].server_id, one[1])))
    fit = (server for server, weight in ranked if has_room(server, weight))
    first = next(fit, None) or min(tier, key=lambda one: got[one[0].server_id] / one[1])[0]
    got[first.server_id] += 1
    if total >= REMEMBERED * len(tier):
        got = {name: count / 2 for name, count in got.items()}
    return (first, *(server for server, _ in ranked if server is not first)), got


def favourite(drawn: int, tier: Tier) -> Server:
    """Where hashing alone sends a conversation."""
    return min(tier, key=lambda one: _score(drawn, one[0].server_id, one[1]))[0]


def _score(drawn: int, server_id: str, weight: int) -> float:
    """Weighted rendezvous: the lowest wins, each as often as its weight says."""
    mixed = hash((drawn, _number(server_id)))  # of whole numbers: the same in every process
    return -math.log((mixed % 2**53 + 0.5) / 2**53) / weight


@lru_cache(maxsize=4096)
def _number(server_id: str) -> int:
    return crc32(server_id.encode())


STRATEGIES: Mapping[str, Strategy] = {
    "weighted_round_robin": weighted_round_robin,
    "least_busy": least_busy,
    "peak_ewma": peak_ewma,
    "affinity": affinity,
}
