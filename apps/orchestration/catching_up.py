"""What an answer tells of the registry, the worker that gives it knows: its next decisions are made by that."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError

from apps.orchestration import registry
from apps.orchestration.requests import Worker
from citadel.database import in_thread
from citadel.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

LOOKS, LOOK_EVERY = 400, 0.005
"""How often, and after how many seconds each time, this worker's snapshot is looked at for a change: mostly twice."""


async def in_registry(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What some work on the registry gives; Unavailable while the database is away."""
    try:
        return await in_thread(work, *args, **kwargs)
    except (OperationalError, InterfaceError):
        raise Unavailable("The registry can't be reached at the moment.", retry_after=5) from None


async def caught_up(runtime: Worker) -> None:
    """Waits until this worker knows the registry as it is now. Unavailable while the database is away."""
    epoch = await in_registry(registry.epoch)
    for _ in range(LOOKS):
        if runtime.fleet.epoch >= epoch:
            return
        await asyncio.sleep(LOOK_EVERY)
