"""Backup requests: whom they are for, how many, and when."""

import asyncio
import time

import pytest

from apps.gateway.inference.hedge import Backups, first_of_two
from apps.orchestration.fleet import Fleet, Model, ModelClass
from apps.orchestration.health.pace import Paces

BUDGET = 0.05
HEDGED = Model("m", (), model_class=ModelClass("c", hedge_ms=100))
SAME_CLASS = Model("n", (), model_class=ModelClass("c", hedge_ms=100))
OTHER_CLASS = Model("o", (), model_class=ModelClass("d", hedge_ms=100))
PLAIN, UNHEDGED = Model("p", ()), Model("q", (), model_class=ModelClass("e"))
AFTER = 0.05


def earned(backups: Backups, model: Model, requests: int = 1000) -> Backups:
    for _ in range(requests):
        backups.earn(model)
    return backups


def count_allowed(backups: Backups, model: Model, *, late: bool) -> int:
    count = 0
    while backups.allowed(model, late):
        count += 1
    return count


def test_only_a_class_earns_its_backups() -> None:
    backups = Backups(Paces(), BUDGET, 1)
    for model in (PLAIN, UNHEDGED, OTHER_CLASS):
        earned(backups, model)
    assert not backups.allowed(HEDGED, late=True)
    earned(backups, SAME_CLASS)
    assert backups.allowed(HEDGED, late=True)


@pytest.mark.parametrize(("workers", "saved"), [(1, 4), (2, 2), (4, 2), (16, 2)])
def test_few_are_saved_up_and_the_last_is_for_who_is_late(workers: int, saved: int) -> None:
    backups = earned(Backups(Paces(), BUDGET, workers), HEDGED)
    assert count_allowed(backups, HEDGED, late=False) == saved - 1
    assert count_allowed(backups, HEDGED, late=True) == 1
    backups.give_back(HEDGED)
    assert count_allowed(backups, HEDGED, late=True) == 1


def test_they_are_a_share_of_the_requests_from_the_first_on() -> None:
    backups, extra = Backups(Paces(), BUDGET, 1), 0
    for number in range(1, 1000):
        backups.earn(HEDGED)
        extra += count_allowed(backups, HEDGED, late=True)
        assert extra <= BUDGET * number
    assert extra > 0.8 * BUDGET * 1000


def test_a_class_that_is_no_more_leaves_nothing() -> None:
    backups = earned(Backups(Paces(), BUDGET, 1), HEDGED)
    backups.follow(Fleet(1, {"m": HEDGED}, {}, {}))
    assert backups.allowed(HEDGED, late=False)
    backups.follow(Fleet(2, {"p": PLAIN}, {}, {}))
    assert not backups.allowed(HEDGED, late=True)


@pytest.mark.parametrize(("takes", "allowed", "waits"), [(9, [True], 1), (9, [False, True], 2), (1.5, [False], 1.5)])
async def test_who_is_refused_one_may_ask_again_when_it_is_late(
    takes: float, allowed: list[bool], waits: float
) -> None:
    """`waits`: for the answer, in times of `AFTER`."""
    asked: list[bool] = []

    async def first() -> str:
        await asyncio.sleep(takes * AFTER)
        return "first"

    async def second() -> str:
        return "second"

    def may(late: bool) -> bool:
        asked.append(late)
        return allowed[len(asked) - 1]

    begun = time.monotonic()
    answer = await first_of_two(first(), second, AFTER, may, print)
    assert answer == ("second" if allowed[-1] else "first")
    assert asked == [False, True][: len(allowed)]
    assert time.monotonic() - begun >= waits * AFTER * 0.99
