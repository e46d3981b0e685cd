"""How the parts are that this Citadel itself stands on: each asked at once, each within its time.

A part that a later app brings, such as a store of vectors, enters its own check into `CHECKS`.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import psycopg
from psycopg_pool import PoolTimeout

from apps.orchestration.health.conditions import Status
from apps.orchestration.requests import Worker
from citadel.redis import RedisError, ask_once

WITHIN = 2.0
"""Seconds that a part has to answer."""
FULL = 0.95
BUSY = 0.85
TROUBLES = (psycopg.Error, PoolTimeout, OSError, TimeoutError, RedisError)


class Part(msgspec.Struct, frozen=True):
    """How one part is."""

    status: Status
    latency_ms: float | None = None
    message: str = ""


Check = Callable[[Worker], Awaitable[Part]]


async def redis(worker: Worker) -> Part:
    """The Redis for state."""
    await worker.board.now()
    return Part("healthy")


async def redis_cache(worker: Worker) -> Part:
    """The Redis for cached answers, where there is one of its own."""
    url = worker.config.redis_cache_url
    if not url:
        return Part("healthy", message="The same as for state.")
    await ask_once(url, WITHIN)
    return Part("healthy")


async def database(worker: Worker) -> Part:
    """PostgreSQL."""
    async with worker.pool.connection(timeout=WITHIN) as connection:
        await connection.execute("SELECT 1")
    return Part("healthy")


async def vector_store(worker: Worker) -> Part:
    """Nothing yet stands on one."""
    return Part("healthy", message="Not used: this Citadel has no collections.")


async def cpu(worker: Worker) -> Part:
    """The load of the last minute against the cores."""
    load, cores = os.getloadavg()[0], psutil.cpu_count() or 1
    return Part("degraded" if load > BUSY * cores else "healthy", message=f"Load {load:.2f} on {cores} cores.")


async def memory(worker: Worker) -> Part:
    """The machine's memory."""
    found = psutil.virtual_memory()
    used = 1 - found.available / found.total
    return Part("degraded" if used > FULL else "healthy", message=f"{used:.0%} of {found.total / 2**30:.1f} GB used.")


async def processes(worker: Worker) -> Part:
    """Those whose process ids stand in `run/`, and the one that answers."""
    living, gone = await asyncio.to_thread(_processes, worker.config.home / "run")
    if gone:
        return Part("degraded", message=f"Running: {', '.join(living)}; gone: {', '.join(gone)}.")
    return Part("healthy", message=f"Running: {', '.join(living) or 'this one'}.")


CHECKS: dict[str, Check] = {
    "redis": redis,
    "redis_cache": redis_cache,
    "database": database,
    "vector_store": vector_store,
    "cpu": cpu,
    "memory": memory,
    "processes": processes,
}


async def check_all(worker: Worker) -> dict[str, Part]:
    """Every part, all asked at once."""
    found = await asyncio.gather(*(_checked(check, worker) for check in CHECKS.values()))
    return dict(zip(CHECKS, found, strict=True))


def worst(*statuses: Status) -> Status:
    """The worst of some statuses, healthy where there are none."""
    return max(statuses, key=("healthy", "degraded", "unhealthy").index, default="healthy")


async def _checked(check: Check, worker: Worker) -> Part:
    started = time.monotonic()
    try:
        async with asyncio.timeout(WITHIN):
            part = await check(worker)
    except TROUBLES as error:
        return Part("unhealthy", _since(started), f"No answer: {type(error).__name__}.")
    return msgspec.structs.replace(part, latency_ms=_since(started))


def _since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 2)


def _processes(folder: Path) -> tuple[list[str], list[str]]:
    living: list[str] = []
    gone: list[str] = []
    for path in sorted(folder.glob("*.pid")):
        try:
            (living if psutil.pid_exists(int(path.read_text())) else gone).append(path.stem)
        except (OSError, ValueError):  # it ended in this moment
            continue
    return living, gone
