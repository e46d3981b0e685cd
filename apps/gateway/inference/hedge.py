"""A backup request to a second server while the first one keeps silent: the first answer wins, the other is let go."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, runtime_checkable

from citadel.errors import BackendRefused

T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """An answer that holds a connection, as a stream does."""

    def close(self) -> None:
        """Lets go of it."""


class Race:
    """Two calls for one request."""

    is_won = False
    """Whether one of them has an answer: if the other is cancelled now it was the slower one."""


async def first_of_two(
    first: Coroutine[Any, Any, T],
    second: Callable[[], Coroutine[Any, Any, T]],
    after: float,
    allowed: Callable[[], bool],
) -> T:
    """What `first` gives, or `second`, which is begun when there is no answer `after` seconds and it is `allowed`.

    A failure is raised when both have failed: that of the first. Cancelled, both are.
    """
    tasks = [asyncio.create_task(first)]
    try:
        await asyncio.wait(tasks, timeout=after)
        if not tasks[0].done() and allowed():
            tasks.append(asyncio.create_task(second()))
        return await _first_good(tasks)
    finally:
        for task in tasks:
            _let_go(task)


async def _first_good(tasks: list["asyncio.Task[T]"]) -> T:
    waiting = set(tasks)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and not task.cancelled() and task.exception() is None:
                tasks.remove(task)  # what is left is let go
                return task.result()
            if task in done and not task.cancelled() and isinstance(task.exception(), BackendRefused):  # by all alike
                return task.result()
        if not waiting:
            return tasks[0].result()


def _let_go(task: "asyncio.Task[Any]") -> None:
    """Ends a call that nobody waits for; one that has an answer all the same closes it."""
    if task.done():
        if not task.cancelled() and task.exception() is None and isinstance(answer := task.result(), Closable):
            answer.close()
    else:
        task.cancel()
        task.add_done_callback(_let_go)
