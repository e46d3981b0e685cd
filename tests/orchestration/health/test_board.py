"""What workers put together on the board."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Literal
from unittest.mock import Mock

import msgspec
import pytest

from apps.orchestration.fleet import EMPTY
from apps.orchestration.health.board import DEPARTED, EXCEEDED, TALLIES, Board
from apps.orchestration.health.conditions import Load
from apps.orchestration.health.evidence import Group
from apps.orchestration.health.loads import OBSERVED
from apps.orchestration.health.pace import WARM, Key, Pace
from apps.orchestration.health.passive import Standings
from apps.orchestration.health.schedule import PROBES
from apps.orchestration.health.standing import PROVEN_FOR
from apps.orchestration.health.watch import Watch
from apps.orchestration.health.window import WINDOW, Tally
from citadel.database import Pool
from citadel.redis import RedisUnavailable
from tests.instance import Instance
from tests.orchestration.health.watchers import configured, watching

KEY = Key("m", "s", False)


@pytest.fixture
async def board(citadel: Instance) -> AsyncIterator[Board]:
    async with watching(citadel, configured(citadel), EMPTY) as watcher:
        yield watcher.board


async def tell(board: Board, seconds: list[float], *, workers: int) -> Pace:
    """Has workers tell of answers in turns; gives one that has seen them all."""
    all_of_them, own = Pace(), [Pace() for _ in range(workers)]
    for number, took in enumerate(seconds):
        all_of_them.answered(took, 0.0)
        own[number % workers].answered(took, 0.0)
        if number % 7 == 0:
            await board.tell_answers({KEY: own[number % workers].take_untold()})
    for pace in own:
        await board.tell_answers({KEY: pace.take_untold()})
    return all_of_them


async def test_few_answers_of_each_worker_are_enough_of_all(board: Board) -> None:
    chance = random.Random(3)
    first, *rest = [chance.lognormvariate(0, 1) for _ in range(WARM)]
    await tell(board, rest, workers=4)
    assert await board.paces() == {}
    whole = await tell(board, [first], workers=1)
    for took in rest:
        whole.answered(took, 0.0)
    assert await board.paces() == {KEY: pytest.approx(whole.quantile(0.99), rel=1e-5)}


async def test_workers_that_begin_have_numbers_one_after_the_other(board: Board) -> None:
    numbers = []
    for _ in range(3):
        standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0)
        watch = Watch(board, standings, Mock(spec=Pool), 30.0)
        await watch.start()
        await watch.stop()
        numbers.append(watch.number)
    assert numbers == list(range(numbers[0], numbers[0] + 3))


async def test_what_is_long_ago_is_forgotten(board: Board) -> None:
    await tell(board, [1.0] * 900, workers=3)
    before = await board.paces()
    await tell(board, [0.01] * 9000, workers=3)
    assert (await board.paces())[KEY] < before[KEY] / 50


async def test_servers_that_have_gone_are_forgotten(board: Board) -> None:
    await tell(board, [1.0] * WARM, workers=1)
    await board.troubles.count_silence("s")
    await board.troubles.count_failure("s")
    for name in ("s", "other"):
        await board.redis.call("SADD", DEPARTED, name)
        await board.redis.call("SADD", EXCEEDED, f"{name} queue")
    await board.redis.call("HSET", PROBES, "s", "turns")
    await board.forget("s")
    assert await board.redis.call("EXISTS", PROBES) == 0
    assert (await board.paces(), await board.troubles.silent(), await board.troubles.failing()) == ({}, set(), set())
    assert (await board.marked(DEPARTED), await board.marked(EXCEEDED)) == ({"other"}, {"other queue"})
    await tell(board, [1.0], workers=1)
    assert await board.paces() == {}, "one answer makes nothing known"


async def test_silences_of_one_moment_are_one(board: Board) -> None:
    assert [await board.troubles.count_silence("s") for _ in range(3)] == [1, 1, 1]
    assert await board.troubles.silent() == {"s"}
    await board.troubles.answers("s", whole=False)
    assert await board.troubles.silent() == set()


async def test_failures_in_a_row_are_counted_until_an_answer_is_whole(board: Board) -> None:
    assert [await board.troubles.count_failure("s") for _ in range(3)] == [1, 2, 3]
    await board.troubles.answers("s", whole=False)
    assert await board.troubles.failing() == {"s"}
    await board.troubles.forgive_failure("s")
    assert await board.troubles.count_failure("s") == 3
    await board.troubles.answers("s", whole=True)
    assert await board.troubles.failing() == set()
    await board.troubles.count_failure("s")
    await board.troubles.forgive_failure("s")
    assert await board.troubles.failing() == set(), "as if there had been none"
    await board.troubles.count_failure("s")
    await board.say("s", "traffic", "unhealthy", "status_500")
    assert await board.troubles.failing() == set(), "it begins anew when it is back"


async def test_good_and_bad_answers_of_all_workers_are_added_up_for_half_a_minute(board: Board) -> None:
    assert await board.tell_tallies({"s": Tally(3, 0), "t": Tally(4, 1)}) == {"t": (4, 1)}, "nothing fails on the other"
    assert await board.tell_tallies({"s": Tally(2, 1)}) == {"s": (5, 1), "t": (4, 1)}
    assert await board.tell_tallies({"t": Tally(0, -1)}) == {"s": (5, 1)}, "that one was forgiven"
    assert 0 < await board.redis.call("PTTL", TALLIES) <= 2 * WINDOW * 1000
    now = int(await board.now() / 1000 / WINDOW)
    for at, found in ((now, (12, 3)), (now - 1, (11, 1)), (now - 2, None), (now + 5, None)):
        await board.redis.call("HSET", TALLIES, "s", f"{at} 11 1 1 2")
        assert (await board.tell_tallies({})).get("s") == found
    assert await board.redis.call("HKEYS", TALLIES) == [b"t"], "what is old is kept no longer"
    await board.redis.call("HSET", TALLIES, "s", f"{now - 1} 11 1 1 2")
    assert (await board.tell_tallies({"s": Tally(1, 1)}))["s"] == (12, 2)


async def test_good_and_bad_answers_are_counted_anew_once_a_server_is_out_or_back(board: Board) -> None:
    async def is_kept() -> bool:
        return "s" in await board.tell_tallies({"s": Tally(1, 1)})

    async def was_kept() -> bool:
        return "s" in await board.tell_tallies({})

    assert await is_kept()
    await board.say("s", "traffic", "degraded", "failures")
    await board.say("s", "traffic", "healthy")
    assert await was_kept(), "it was not out"
    assert await board.eject("s", "status_500", [Group(1, ["s", "t"])])
    assert not await was_kept()
    assert await is_kept()
    await board.say("s", "probe", "unhealthy", "refused")
    await board.say("s", "traffic", "healthy")
    assert not await was_kept(), "all has been forgiven that it has done while it was out"
    assert await is_kept()
    await board.say("s", "probe", "degraded", "slow")
    assert not await was_kept()
    await board.eject("t", "status_500", [])
    assert await is_kept()
    assert await board.eject("s", "status_500", [Group(1, ["s", "t"])]) is None
    assert not await was_kept(), "it may not be out, and its past is forgotten"
    assert await is_kept()
    await board.forget("s")
    assert not await was_kept()


async def test_since_when_a_server_is_silent_is_told_by_whichever_worker_knows_best(board: Board) -> None:
    for since in (2000, 1000, 3000, 0):
        await board.eject("s", "timeout", [], since)
    await board.say("s", "traffic", "degraded", "failures")
    said = (await board.look_up("s")).memory("traffic")
    assert (said["status"], said["failing_since"]) == ("unhealthy", 1000)
    await board.say("s", "traffic", "healthy")
    await board.eject("s", "status_500", [])
    assert "failing_since" not in (await board.look_up("s")).memory("traffic")


async def test_suspects_from_before_a_workers_first_look_are_as_old_as_they_are(board: Board) -> None:
    await board.troubles.suspect(b"x")
    watch = Watch(board, Standings(eject_after=5, max_backoff=30.0, trial_limit=30.0), Mock(spec=Pool), 30.0)
    await watch.look()
    assert watch.suspects == {b"x": pytest.approx(time.monotonic(), abs=5.0)}


@pytest.mark.parametrize("answers", [True, False])
async def test_a_server_that_answers_again_while_redis_is_away_is_not_put_out_when_it_is_back(answers: bool) -> None:
    board = Mock(spec=Board)
    standings = Standings(eject_after=1, max_backoff=30.0, trial_limit=30.0)
    watch = Watch(board, standings, Mock(spec=Pool), 30.0)

    async def eject(*_: object) -> None:
        if answers:
            standings.succeeded("s", 1.0, trial=True)
        raise RedisUnavailable("away")

    board.eject = eject
    assert standings.failed("s", 0.0) == "ejected"
    watch.server_out("s", "timeout", [])
    await watch._tell_who_is_out()
    assert list(watch._untold) == ([] if answers else ["s"])
    await watch.stop()


async def test_a_worker_that_knew_better_follows_the_board_once_its_answers_are_old(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing on the board has changed meanwhile: bad probes one after the other are no news."""
    standings = Standings(eject_after=5, max_backoff=30.0, trial_limit=30.0)
    watch = Watch(board, standings, Mock(spec=Pool), 30.0)
    await board.say("s", "probe", "unhealthy", "status_503")
    await watch.look()
    standings.succeeded("s", time.monotonic(), trial=True)
    await watch.look()
    assert standings.in_rotation("s")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + PROVEN_FOR + 1)
    await watch.look()
    assert not standings.in_rotation("s")


async def test_who_finds_a_server_degraded_that_is_out_does_not_bring_it_back(board: Board) -> None:
    await board.eject("s", "timeout", [Group(1, ["s", "t"])])
    change = await board.say("s", "traffic", "degraded", "failures")
    assert (change.changed, change.record.status, change.record.reason) == (False, "unhealthy", "timeout")
    assert (await board.say("s", "traffic", "healthy")).record.status == "healthy"
    assert (await board.say("s", "traffic", "degraded", "failures")).record.status == "degraded"


@pytest.mark.parametrize("status", ["healthy", "degraded"])
async def test_trials_begin_anew_with_the_next_outage_also_where_probes_have_ended_the_last(
    board: Board, status: Literal["healthy", "degraded"]
) -> None:
    await board.say("s", "probe", "unhealthy", "status_500")
    assert await board.take_trial("s", 30_000) == (True, 0)
    taken, left = await board.take_trial("s", 30_000)
    assert not taken
    assert left > 0
    await board.say("s", "probe", status)
    await board.say("s", "probe", "unhealthy", "status_500")
    assert await board.take_trial("s", 30_000) == (True, 0)


async def test_a_model_that_was_preloaded_stands_beside_what_a_probe_has_found(board: Board) -> None:
    """And makes that no younger, nor what is too old to be believed."""
    loads = board.loads
    await loads.observe("s", Load(in_flight=3, models=("b",)))
    before = (await loads.read())["s"]
    await asyncio.sleep(0.01)
    await loads.observe_model("s", "a")
    assert (await loads.read())["s"] == msgspec.structs.replace(before, models=("a", "b"))
    old = msgspec.structs.replace(before, at=0)
    await board.redis.call("HSET", OBSERVED, "s", msgspec.json.encode(old))
    await loads.observe_model("s", "a")
    after = (await loads.read())["s"]
    assert (after.in_flight, after.models, after.at > before.at) == (None, ("a",), True)
