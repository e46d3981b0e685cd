"""Waiting: for several things at once, and for one thing to come true."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

POLL_SECONDS = 0.05

Result = TypeVar("Result")


async def together(*work: Coroutine[Any, Any, Result]) -> list[Result]:
    """Do all of it at the same time and give the results in order; the first failure cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def until(question: Callable[[], Awaitable[str | None]], seconds: float) -> str | None:
    """Ask until the answer is None (all is well) or SECONDS have passed; gives the last answer."""
    trouble: str | None = "no answer"
    try:
        async with asyncio.timeout(seconds):
            while trouble := await question():  # noqa: ASYNC110 - what is waited for is in another process
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        return trouble
    return None
