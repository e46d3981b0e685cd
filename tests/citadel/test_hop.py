"""By which ways a model is had: in whatever rings Citadels stand, none has one only by itself."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel import hop

NAMES = "abcde"
Ring = Mapping[str, set[str]]
"""Whom each Citadel has in its fleet."""


class Ringed:
    """Citadels that ask each other for one model, which some hold themselves."""

    def __init__(self, fleets: Ring):
        self.fleets = fleets
        self.learnt: dict[str, dict[str, tuple[hop.Way, ...]]] = {name: {} for name in NAMES}

    def ask_round(self, holders: set[str]) -> None:
        """Each asks each server of its fleet, as discovery does; often enough for the last to hear of the first."""
        for _ in range(len(NAMES) + 1):
            for asker in NAMES:
                for server in sorted(self.fleets[asker]):
                    told = hop.ways_of([list(way) for way in self._told(server, holders)])
                    self.learnt[asker].pop(server, None)
                    if ways := hop.ways_past(asker, told):
                        self.learnt[asker][server] = ways

    def _told(self, name: str, holders: set[str]) -> list[hop.Way]:
        if name in holders:
            return hop.ways_by(name, ())
        ways = hop.fewest(way for ways in self.learnt[name].values() for way in ways)
        return hop.ways_by(name, ways) if ways else []


def reach(fleets: Ring, start: str, without: str) -> set[str]:
    """Where requests get from `start` that may not pass `without`."""
    found, new = set[str](), {start}
    while new:
        found |= new
        new = {name for one in new for name in fleets[one]} - found - {without}
    return found


some = st.sets(st.sampled_from(NAMES))
rings = st.fixed_dictionaries({name: some.map(lambda names, own=name: names - {own}) for name in NAMES})


@given(rings, some, some)
def test_a_model_is_learnt_from_whom_it_is_had_by_another_way_than_oneself(
    fleets: Ring, holders: set[str], later: set[str]
) -> None:
    """Also when others hold it than before, or nobody does: then it goes, in all of them."""
    ringed = Ringed(fleets)
    for holding in (holders, later, set[str]()):
        ringed.ask_round(holding)
        for asker in NAMES:
            expected = {name for name in fleets[asker] if reach(fleets, name, asker) & holding}
            assert set(ringed.learnt[asker]) == expected


@pytest.mark.parametrize(
    ("told", "ways"),
    [
        ([["b", "a"], ["c"]], (("c",), ("a", "b"))),
        ([["b", "a"], ["a"], ["a", "a"]], (("a",),)),
        ([["a"], "b", None, [], ["\0"], ["x y"], [{}], ["é"], ["x" * 65]], (("a",),)),
        (
            [[str(number)] for number in range(1000)],
            tuple((str(number),) for number in (0, 1, *range(10, 16), *range(2, 10))),
        ),
        ([[str(number) for number in range(1000)]], ()),
        (None, ()),
        ("ab", ()),
        ({"a": ["b"]}, ()),
    ],
)
def test_what_makes_no_sense_is_no_way(told: Any, ways: tuple[hop.Way, ...]) -> None:
    assert hop.ways_of(told) == ways


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_any_json_is_read(told: Any) -> None:
    assert all(way and all(map(hop.MARK.fullmatch, way)) for way in hop.ways_of(told))
