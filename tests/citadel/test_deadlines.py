"""One time limit for many tasks."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from citadel.deadlines import Deadlines, deadline
from tests.held_up import HELD_UP

Work = Callable[[], Awaitable[object]]


async def within(deadlines: Deadlines, work: Work) -> object:
    with deadlines:
        return await work()


async def alone(limit: float, work: Work) -> object:
    async with deadline(limit):
        return await work()


async def forever() -> None:
    await asyncio.Event().wait()


async def test_what_ends_in_time_is_let_be() -> None:
    deadlines = Deadlines(0.05)

    async def quick() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await asyncio.gather(*(within(deadlines, quick) for _ in range(100))) == ["done"] * 100
    await asyncio.sleep(0.1)  # a timer that was left behind would cancel this task now


async def test_what_takes_longer_is_stopped_and_its_task_lives_on() -> None:
    deadlines = Deadlines(0.02)
    with pytest.raises(TimeoutError):
        await within(deadlines, forever)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_one_alone_has_its_time_and_no_more() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await alone(0.1, forever)
    assert 0.09 < time.monotonic() - begun < 0.5 + HELD_UP
    assert await alone(0.05, lambda: asyncio.sleep(0, "done")) == "done"
    await asyncio.sleep(0.1)


async def test_each_has_its_own_time_from_its_own_beginning() -> None:
    deadlines, loop = Deadlines(0.1), asyncio.get_running_loop()

    async def begin_after(pause: float) -> float:
        await asyncio.sleep(pause)
        begun = loop.time()
        with pytest.raises(TimeoutError):
            await within(deadlines, forever)
        return loop.time() - begun

    assert all(taken > 0.099 for taken in await asyncio.gather(*(begin_after(n / 50) for n in range(10))))


@pytest.mark.parametrize("turn", [0.03, 0.3])
def test_a_busy_loop_takes_nobodys_time(turn: float) -> None:
    """In it time goes by before the block begins, and what is there is not seen at once."""

    async def takes_some_turns() -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        return "done"

    async def work() -> None:
        deadlines = Deadlines(0.1)
        asked = [asyncio.create_task(within(deadlines, takes_some_turns)) for _ in range(3)]
        asked += [asyncio.create_task(alone(0.1, takes_some_turns))]
        while not all(task.done() for task in asked):
            time.sleep(turn)  # noqa: ASYNC251
            await asyncio.sleep(0)
        assert await asyncio.gather(*asked) == ["done"] * 4

    uvloop.run(work())


async def test_it_goes_on_after_a_pause() -> None:
    deadlines = Deadlines(0.02)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await within(deadlines, forever)
        await asyncio.sleep(0.03)


async def test_another_wish_to_cancel_stays_what_it_is() -> None:
    deadlines = Deadlines(30)
    task = asyncio.ensure_future(within(deadlines, forever))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_is_the_other_wish() -> None:
    """As with asyncio.timeout: a task that somebody else wants gone goes."""
    deadlines = Deadlines(0.01)

    async def cancel_as_well() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await forever()
        except asyncio.CancelledError:
            task.cancel()
            raise

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(within(deadlines, cancel_as_well))  # type: ignore[arg-type]


async def test_an_error_of_the_work_is_its_own() -> None:
    async def fails() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await within(Deadlines(1), fails)
