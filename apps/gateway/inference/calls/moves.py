"""Lets requests that wait for a server's first byte leave it at once, when it is known that none will come."""

import asyncio
from collections import defaultdict
from types import TracebackType

from apps.gateway.inference.http.failures import MOVED, Failure
from apps.orchestration.health.trials import FIRST_BACKOFF
from citadel.errors import Unavailable


class Moves:
    """Who waits where in this worker."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: defaultdict[str, set[asyncio.Task[object]]] = defaultdict(set)
        self._moved: set[asyncio.Task[object]] = set()

    def waiting_for(self, server_id: str) -> "_Stay":
        """A block in which the task waits for a first byte of the server; Failure when it shall go elsewhere."""
        return _Stay(self._waiting[server_id], self._moved, self._loop)

    def move(self, server_id: str) -> int:
        """Sends everybody who waits there elsewhere; gives how many."""
        tasks = self._waiting.pop(server_id, set())
        for task in tasks - self._moved:
            self._moved.add(task)
            task.cancel()
        return len(tasks)


class _Stay:
    """As Deadlines does it: a cancellation that was ours alone is taken back."""

    __slots__ = ("_loop", "_moved", "_task", "_waiting")

    def __init__(
        self, waiting: set["asyncio.Task[object]"], moved: set["asyncio.Task[object]"], loop: asyncio.AbstractEventLoop
    ):
        self._waiting = waiting
        self._moved = moved
        self._loop = loop

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # whoever awaits anything is in a task
        self._task = task
        self._waiting.add(task)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        self._waiting.discard(task)
        if task in self._moved:
            self._moved.discard(task)
            if task.uncancel() == 0 and kind is not None and issubclass(kind, asyncio.CancelledError):
                gone = Unavailable("The server does not answer.", code="server_unavailable", retry_after=FIRST_BACKOFF)
                raise Failure(MOVED, gone, blamed=False) from None
