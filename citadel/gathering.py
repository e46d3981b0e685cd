"""Many questions to Redis in one call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from citadel.redis import RedisError, RedisUnavailable

TURNS = 3
"""Turns of the event loop for which questions gather before a call goes out."""
MOST = 100
"""Questions in one call: a thousand would keep Redis from all other workers for longer than a call may take."""
Asked = TypeVar("Asked")
Told = TypeVar("Told")


class Gathering(Generic[Asked, Told]):
    """Lets all who ask at about the same time share one call.

    A call goes out a few turns of the event loop after the first question, and not while another is under way: an
    idle worker waits microseconds, one under load makes few large calls instead of many small ones, of `MOST` questions
    at most. `send` gets the questions and gives as many answers, in their order. `unclaimed` is told of an answer whose
    asker has gone.
    """

    def __init__(
        self,
        send: Callable[[list[Asked]], Awaitable[Sequence[Told]]],
        unclaimed: Callable[[Asked, Told], None] = lambda _question, _answer: None,
    ):
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._unclaimed = unclaimed
        self._asked: list[tuple[Asked, asyncio.Future[Told]]] = []
        self._under_way = False
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def ask(self, question: Asked) -> "asyncio.Future[Told]":
        """The answer to come; fails as the shared call fails."""
        future: asyncio.Future[Told] = self._loop.create_future()
        self._asked.append((question, future))
        self.nudge()
        return future

    def nudge(self) -> None:
        """Has `send` called soon, even if nobody asks."""
        if not self._under_way:
            self._under_way = True
            self._loop.call_soon(self._wait, TURNS)
        else:
            self._again = True

    def _wait(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._wait, turns - 1)
        else:
            self._again = False
            self._task = self._loop.create_task(self._call())

    async def _call(self) -> None:
        asked, self._asked = self._asked[:MOST], self._asked[MOST:]
        try:
            answers = await self._send([question for question, _ in asked])
        except RedisError as error:
            _fail(asked, error)
        except BaseException:  # nobody is left to wait for ever
            _fail(asked, RedisUnavailable("not asked"))
            raise
        else:
            self._tell(asked, answers)
        finally:
            self._under_way = False
            if self._again or self._asked:
                self.nudge()

    def _tell(self, asked: list[tuple[Asked, "asyncio.Future[Told]"]], answers: Sequence[Told]) -> None:
        for (question, future), answer in zip(asked, answers, strict=True):
            if future.done():
                self._unclaimed(question, answer)
            else:
                future.set_result(answer)


def _fail(asked: Sequence[tuple[object, "asyncio.Future[Told]"]], error: Exception) -> None:
    for _, future in asked:
        if not future.done():
            future.set_exception(error)
            future.exception()  # whoever still waits gets it; nobody else need hear of it
