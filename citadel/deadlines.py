"""One time limit for many tasks, kept by one timer.

`asyncio.timeout` sets up and takes down a timer for each use, which on the path of a request costs as much as checking
its key. Where the limit is the same for all, the task that began first is due first: the others need no timer.

The loop of a busy worker comes to a timer before it has read and taken what came in time. So whoever is due has some
turns of the loop more, which an idle worker makes in less than a millisecond.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType

TURNS = 10
"""Of the event loop that a task has beyond its limit: to make a connection, by TLS too, takes five."""


class Deadlines:
    """A limit of `limit` seconds for each `with deadlines:` block; TimeoutError where it takes longer.

    The block must be in a task, and a task can be in one block at a time.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        """Kept: on Python 3.11 each question for it is a system call."""
        self._due: dict[asyncio.Task[object], float] = {}
        """In the order in which the tasks came in, so the first is due first."""
        self._overdue: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # whoever awaits anything is in a task
        self._due[task] = self._loop.time() + self._limit
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit, self._come_due)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101
        del self._due[task]
        if task in self._overdue:
            self._overdue.discard(task)
            # As asyncio.timeout does it: if that was the only wish to cancel the task, it is ours to take back.
            if task.uncancel() == 0 and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    def _come_due(self) -> None:
        _after_turns(self._loop, TURNS, self._check, self._loop.time())

    def _check(self, now: float) -> None:
        """Cancels what was due then and sets the timer for what is due next."""
        self._timer = None
        for task, due in self._due.items():
            if due > now:
                self._timer = self._loop.call_at(due, self._come_due)
                return
            if task not in self._overdue:
                self._overdue.add(task)
                task.cancel()


@asynccontextmanager
async def deadline(limit: float) -> AsyncIterator[None]:
    """A limit of `limit` seconds for one block, where it is another each time; TimeoutError where it takes longer."""
    loop, is_over = asyncio.get_running_loop(), False

    def end() -> None:
        if not is_over:
            bound.reschedule(loop.time())

    async with asyncio.timeout(None) as bound:
        timer = loop.call_later(limit, _after_turns, loop, TURNS, end)
        try:
            yield
        finally:
            is_over = True
            timer.cancel()


def _after_turns(loop: asyncio.AbstractEventLoop, turns: int, then: Callable[..., None], *arguments: object) -> None:
    if turns:
        loop.call_soon(_after_turns, loop, turns - 1, then, *arguments)
    else:
        then(*arguments)
