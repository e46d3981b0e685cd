"""Backup requests: whom they are for, and when they begin."""

import asyncio
import time
from unittest.mock import Mock

import pytest

from apps.gateway.inference.calls.hedge import KEPT_BACK, Backups, first_of_two
from apps.gateway.inference.http.words import PAST_CONTEXT
from apps.orchestration.fleet import Model, ModelClass
from apps.orchestration.health.pace import Paces
from citadel.errors import BackendRefused

HEDGED = Model("m", (), model_class=ModelClass("c", hedge_ms=100))
SAME_CLASS = Model("n", (), model_class=ModelClass("c", hedge_ms=100))
OTHER_CLASS = Model("o", (), model_class=ModelClass("d", hedge_ms=100))
PLAIN, UNHEDGED = Model("p", ()), Model("q", (), model_class=ModelClass("e"))
AFTER = 0.2


def nothing(*_: object) -> None:
    """For what is not looked at."""


class Counted:
    """An allowance that counts, as the one in Redis does."""

    share = 0.05

    def __init__(self) -> None:
        self.earned: dict[str, float] = {}

    def earn(self, purpose: str) -> None:
        self.earned[purpose] = self.earned.get(purpose, 0) + 0.05

    def give_back(self, purpose: str) -> None:
        self.earned[purpose] += 1

    async def spend(self, purpose: str, *, beyond: float = 0.0) -> bool:
        if self.earned.get(purpose, 0) < 1 + beyond:
            return False
        self.earned[purpose] -= 1
        return True


async def test_only_a_class_earns_its_backups_and_the_last_is_for_who_is_late() -> None:
    counted = Counted()
    backups = Backups(Paces(), counted)  # type: ignore[arg-type]
    for model in (PLAIN, UNHEDGED, OTHER_CLASS) * 100:
        backups.earn(model)
    assert not await backups.allowed(HEDGED, late=True)
    for _ in range(39):
        backups.earn(SAME_CLASS)
    assert KEPT_BACK == 1
    assert not await backups.allowed(HEDGED, late=False)
    assert await backups.allowed(HEDGED, late=True)
    backups.give_back(HEDGED)
    backups.earn(HEDGED)
    assert await backups.allowed(HEDGED, late=False)


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

    async def may(late: bool) -> bool:
        asked.append(late)
        return allowed[len(asked) - 1]

    begun = time.monotonic()
    answer = await first_of_two(first(), second, AFTER, may, nothing, nothing)
    assert answer == ("second" if allowed[-1] else "first")
    assert asked == [False, True][: len(allowed)]
    assert time.monotonic() - begun >= waits * AFTER * 0.99


async def test_an_answer_that_comes_while_the_budget_is_asked_for_is_given() -> None:
    thrown_away = Mock()

    async def first() -> str:
        await asyncio.sleep(1.5 * AFTER)
        return "first"

    async def second() -> str:
        raise AssertionError("a server is asked in vain")

    async def may(_late: bool) -> bool:
        await asyncio.sleep(100 * AFTER)
        return True

    begun = time.monotonic()
    assert await first_of_two(first(), second, AFTER, may, nothing, thrown_away) == "first"
    assert time.monotonic() - begun < 50 * AFTER
    thrown_away.assert_not_called()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_first_that_is_over_in_the_turn_of_the_permission_has_no_second(fails: bool) -> None:
    granted, given_back = asyncio.Event(), Mock()

    async def first() -> str:
        await granted.wait()
        if fails:
            raise BackendRefused("No.", status=400)
        return "first"

    async def second() -> str:
        raise AssertionError("a server is asked in vain")

    async def may(_late: bool) -> bool:
        granted.set()
        return True

    given = await asyncio.gather(first_of_two(first(), second, AFTER, may, given_back, nothing), return_exceptions=True)
    assert isinstance(given[0], BackendRefused) if fails else given == ["first"]
    given_back.assert_called_once_with()


async def test_a_failure_is_told_at_once_while_no_backup_is_allowed() -> None:
    async def first() -> str:
        await asyncio.sleep(1.1 * AFTER)
        raise ValueError("it was killed")

    async def second() -> str:
        raise AssertionError("a server is asked without leave")

    async def may(_late: bool) -> bool:
        return False

    begun = time.monotonic()
    with pytest.raises(ValueError, match="it was killed"):
        await first_of_two(first(), second, AFTER * 10, may, nothing, nothing)
    assert time.monotonic() - begun < AFTER * 9
    begun = time.monotonic()
    with pytest.raises(ValueError, match="it was killed"):
        await first_of_two(first(), second, AFTER, may, nothing, nothing)
    assert time.monotonic() - begun < AFTER * 1.9, "not when the backup would be asked for again"


@pytest.mark.parametrize("refused", ["first", "second"])
async def test_what_is_too_long_for_one_may_not_be_for_the_other(refused: str) -> None:
    async def ask(which: str, seconds: float) -> str:
        await asyncio.sleep(seconds)
        if which == refused:
            raise BackendRefused("It is too long.", status=400, code=PAST_CONTEXT)
        return which

    async def may(_late: bool) -> bool:
        return True

    seconds = {"first": 3 * AFTER if refused == "second" else 1.5 * AFTER, "second": AFTER}
    answer = await first_of_two(
        ask("first", seconds["first"]), lambda: ask("second", seconds["second"]), AFTER, may, nothing, nothing
    )
    assert answer == ({"first", "second"} - {refused}).pop()


def test_without_a_budget_there_are_none() -> None:
    allowance = Counted()
    allowance.share = 0.0
    backups = Backups(Paces(), allowance)  # type: ignore[arg-type]
    assert backups.after(HEDGED, streams=False) is None
