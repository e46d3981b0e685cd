"""The registry as answers ask and change it. What an answer tells of it, the worker that gives it knows: its next
decisions are made by that.
"""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from django.db import InterfaceError, OperationalError

from apps.orchestration import registry
from apps.orchestration.models import Server
from apps.orchestration.registration import SERVER_ID
from apps.orchestration.requests import Worker
from citadel.database import in_thread
from citadel.errors import NotFound, Unavailable

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


async def on_server(work: Callable[Concatenate[str, P], T], server_id: str, *args: P.args, **kwargs: P.kwargs) -> T:
    """What some work on a server's row gives; NotFound where there is none, and where none can have such an id."""
    check_id(server_id)
    try:
        return await in_registry(work, server_id, *args, **kwargs)
    except Server.DoesNotExist:
        raise unknown_server(server_id) from None


def check_id(server_id: str) -> None:
    """NotFound where no server can have such an id."""
    if not SERVER_ID.fullmatch(server_id):
        raise unknown_server(server_id)


def unknown_server(server_id: str) -> NotFound:
    """What is said where there is no server of that id."""
    return NotFound(f"There is no server '{server_id[:64]}'.", code="server_not_found", param="server_id")


async def caught_up(runtime: Worker) -> None:
    """Waits until this worker knows the registry as it is now. Unavailable while the database is away."""
    epoch = await in_registry(registry.epoch)
    for _ in range(LOOKS):
        if runtime.fleet.epoch >= epoch:
            return
        await asyncio.sleep(LOOK_EVERY)
