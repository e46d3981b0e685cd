"""Lets requests that wait for a server's first byte leave it at once, when it is known that none will come."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType

from apps.gateway.inference.exchange import Exchange
from apps.gateway.inference.http.failures import MOVED, Failure
from apps.orchestration.health.trials import FIRST_BACKOFF
from citadel.errors import Unavailable

Waiting = dict["asyncio.Task[object]", Exchange]


class Moves:
    """Who waits where in this worker. `has_elsewhere` tells of a request whether another server may take it."""

    def __init__(self, has_elsewhere: Callable[[Exchange], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._has_elsewhere = has_elsewhere
        self._waiting: defaultdict[str, Waiting] = defaultdict(dict)
        self._moved: set[asyncio.Task[object]] = set()

    def waiting_for(self, server_id: str, exchange: Exchange) -> "_Stay":
        """A block in which the task waits for a first byte of the server; Failure when it shall go elsewhere."""
        return _Stay(self._waiting[server_id], exchange, self._moved, self._loop)

    def move(self, server_id: str) -> int:
        """Sends everybody who waits there elsewhere, as no answer will come; gives how many."""
        return self._call_back(list(self._waiting.pop(server_id, {})))

    def move_who_can(self, server_id: str) -> int:
        """The same with those for whom there is another server: the others may get their answers here all the same."""
        waiting = self._waiting.get(server_id, {})
        return self._call_back([task for task, exchange in waiting.items() if self._has_elsewhere(exchange)])

    def _call_back(self, tasks: list["asyncio.Task[object]"]) -> int:
        for task in tasks:
            if task not in self._moved:
                self._moved.add(task)
                task.cancel()
        return len(tasks)


class _Stay:
    """As Deadlines does it: a cancellation that was ours alone is taken back."""

    __slots__ = ("_exchange", "_loop", "_moved", "_task", "_waiting")

    def __init__(
        self,
        waiting: Waiting,
        exchange: Exchange,
        moved: set["asyncio.Task[object]"],
        loop: asyncio.AbstractEventLoop,
    ):
        self._waiting = waiting
        self._exchange = exchange
        self._moved = moved
        self._loop = loop

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # whoever awaits anything is in a task
        self._task = task
        self._waiting[task] = self._exchange

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        self._waiting.pop(task, None)
        if task in self._moved:
            self._moved.discard(task)
            if task.uncancel() == 0 and kind is not None and issubclass(kind, asyncio.CancelledError):
                gone = Unavailable("The server does not answer.", code="server_unavailable", retry_after=FIRST_BACKOFF)
                raise Failure(MOVED, gone, blamed=False) from None
