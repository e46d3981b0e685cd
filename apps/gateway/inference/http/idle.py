"""How many connections that nobody uses are kept, so that a burst of yesterday holds nothing today. Pure."""

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Place = TypeVar("Place", bound=Hashable)


class Bounds(NamedTuple):
    """The most that are kept idle: of all servers' together, and of one server's."""

    in_all: int
    per_server: int


def surplus(idle: Mapping[Place, Sequence[float]], bounds: Bounds, before: float) -> dict[Place, int]:
    """How many to close at each place, of those that have been idle longest: what is beyond the bounds and idle since
    `before` or longer. `idle` tells since when, the longest first.
    """
    lengths = {place: len(since) for place, since in idle.items()}
    if sum(lengths.values()) <= bounds.in_all and max(lengths.values(), default=0) <= bounds.per_server:
        return {}
    old = {place: bisect_right(since, before) for place, since in idle.items()}
    closed = {place: max(0, min(old[place], lengths[place] - bounds.per_server)) for place in idle}
    too_many = sum(lengths.values()) - sum(closed.values()) - bounds.in_all
    rest = [(at, place) for place, since in idle.items() for at in since[closed[place] : old[place]]]
    rest.sort(key=lambda one: one[0])
    for _, place in rest[: max(0, too_many)]:
        closed[place] += 1
    return {place: number for place, number in closed.items() if number}
