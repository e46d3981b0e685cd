"""One time limit for many tasks, kept by one timer.

`asyncio.timeout` sets up and takes down a timer for each use, which on the path of a request costs as much as checking
its key. Where the limit is the same for all, the task that began first is due first: the others need no timer.
"""

import asyncio
from types import TracebackType


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
            self._timer = self._loop.call_later(self._limit, self._check)

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

    def _check(self) -> None:
        """Cancels what is due and sets the timer for what is due next."""
        self._timer = None
        now = self._loop.time()
        for task, due in self._due.items():
            if due > now:
                self._timer = self._loop.call_at(due, self._check)
                return
            if task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
