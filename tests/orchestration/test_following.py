"""Workers follow the database through lost notifications and lost connections."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import psycopg
import pytest
from django.db import OperationalError

from apps.orchestration.follow import follow
from tests.held_up import HELD_UP
from tests.instance import Instance

TABLES = ("orchestration_server", "orchestration_servedmodel")
AT_THE_LATEST = 2.0 + HELD_UP
"""A poll each second, and the time that reading takes."""


async def wait_for_model(http: aiohttp.ClientSession, name: str, within: float) -> None:
    begun = time.monotonic()
    while True:
        async with http.get(f"/v1/models/{name}") as answer:
            if answer.status == 200:
                return
        assert time.monotonic() - begun < within


@pytest.mark.parametrize("lost", ["notification", "connection"])
async def test_what_nobody_told_is_found(citadel: Instance, http: aiohttp.ClientSession, model: str, lost: str) -> None:
    """A change without the trigger that tells of it, and one while the worker's connection for that is broken."""
    server_id = f"quiet-{model}"
    with psycopg.connect(citadel.database_url, autocommit=True) as connection:
        if lost == "connection":
            killed = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'citadel-follow'"
            ).fetchall()
            assert (True,) in killed, "the worker's; the prober's is another"
        with connection.transaction():
            if lost == "notification":
                for table in TABLES:
                    connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER raise_epoch")
                connection.execute("UPDATE orchestration_epoch SET number = number + 1")
            [server] = connection.execute(
                "INSERT INTO orchestration_server (server_id, scheme, hostname, port, base_path, kind, state, weight, "
                "api_key, registered, role, capabilities, services, max_concurrent, health_endpoint, models_endpoint, "
                "metrics_endpoint, registered_by) VALUES (%s, 'http', '127.0.0.1', 1, '', 'openai', 'active', 1, '', "
                "now(), '', '[]', '[]', 0, '', '', '', '') RETURNING id",
                (server_id,),
            ).fetchone() or [None]
            connection.execute(
                "INSERT INTO orchestration_servedmodel (name, owned_by, server_id) VALUES (%s, '', %s)", (model, server)
            )
            if lost == "notification":
                connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
                for table in TABLES:
                    connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER raise_epoch")
    try:
        await wait_for_model(http, model, AT_THE_LATEST + (lost == "connection"))
    finally:
        citadel.remove(server_id)


async def test_a_change_that_is_rolled_back_is_none(citadel: Instance, http: aiohttp.ClientSession, model: str) -> None:
    from django.db import transaction

    from apps.orchestration.registry import add

    with transaction.atomic():
        add(f"never-{model}", "http://127.0.0.1:1", models=[model])
        transaction.set_rollback(True)
    marker = f"marker-{model}"
    add(marker, "http://127.0.0.1:1", models=[marker])
    try:
        await wait_for_model(http, marker, AT_THE_LATEST)
        async with http.get(f"/v1/models/{model}") as answer:
            assert answer.status == 404
    finally:
        citadel.remove(marker)


@asynccontextmanager
async def following(citadel: Instance, moved: Callable[[], Awaitable[int]]) -> AsyncIterator[list[bool]]:
    """One that follows in this process; what it has told of the database."""
    told: list[bool] = []
    task = asyncio.create_task(follow(citadel.database_url, -1, moved, told.append))
    try:
        yield told
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(told: list[bool], answers: bool, within: float) -> None:
    async with asyncio.timeout(within):
        while not told or told[-1] is not answers:  # noqa: ASYNC110  # nobody tells when
            await asyncio.sleep(0.05)


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes of PostgreSQL that serve the follower of this process, in the order in which they came."""
    pids: list[int] = []
    connect = psycopg.AsyncConnection.connect

    async def noted(*place: Any, **options: Any) -> psycopg.AsyncConnection:
        connection = await connect(*place, **options)
        if options.get("application_name") == "citadel-follow":
            pids.append(connection.info.backend_pid)
        return connection

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", noted)
    return pids


def epoch_of(citadel: Instance) -> int:
    with psycopg.connect(citadel.database_url) as connection:
        [epoch] = connection.execute("SELECT number FROM orchestration_epoch").fetchone() or [0]
        return int(epoch)


async def test_a_database_that_hangs_is_told_within_seconds(citadel: Instance, backends: list[int]) -> None:
    """To give the query up takes longer by far."""

    async def moved() -> int:
        return epoch_of(citadel)

    async with following(citadel, moved) as told:
        await until(told, answers=True, within=5 + HELD_UP)
        [ours] = backends
        os.kill(ours, signal.SIGSTOP)
        try:
            await until(told, answers=False, within=6.5 + HELD_UP)
        finally:
            os.kill(ours, signal.SIGCONT)
        await until(told, answers=True, within=10 + HELD_UP)


async def test_a_database_that_hangs_while_all_is_read_is_told(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: what is being read is waited for, and followed on."""
    monkeypatch.setattr("apps.orchestration.follow.ANSWER_TIMEOUT", 0.5)
    hung, ended = asyncio.Event(), 0

    async def moved() -> int:
        nonlocal ended
        await hung.wait()
        ended += 1
        return epoch_of(citadel) if ended > 1 else -2  # as if all had moved again

    async with following(citadel, moved) as told:
        await until(told, answers=False, within=3 + HELD_UP)
        assert told == [True, False]
        await asyncio.sleep(2.0)
        assert (told, ended) == ([True, False], 0)
        hung.set()
        await until(told, answers=True, within=3 + HELD_UP)
        async with asyncio.timeout(3 + HELD_UP):
            while ended < 2:  # noqa: ASYNC110  # nobody tells when
                await asyncio.sleep(0.05)


async def test_a_database_that_goes_while_all_is_read_is_told(citadel: Instance) -> None:
    async def moved() -> int:
        raise OperationalError("gone")

    async with following(citadel, moved) as told:
        await until(told, answers=False, within=5 + HELD_UP)


async def test_who_looks_is_woken_though_the_epoch_stays(citadel: Instance) -> None:
    """And else looks at each poll."""
    looked = asyncio.Queue[float]()

    async def moved() -> int:
        return epoch_of(citadel)

    async def look(connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute("SELECT 1")
        looked.put_nowait(time.monotonic())

    task = asyncio.create_task(follow(citadel.database_url, -1, moved, look=look))
    try:
        async with asyncio.timeout(5 + HELD_UP):
            first, second = [await looked.get() for _ in range(2)]
            assert second - first < 2 + HELD_UP
            with psycopg.connect(citadel.database_url, autocommit=True) as connection:
                for _ in range(5):
                    while not looked.empty():
                        looked.get_nowait()
                    told = time.monotonic()
                    connection.execute("NOTIFY citadel_epoch")
                    if await looked.get() - told < 0.5:
                        return
        raise AssertionError("it never looked at once when it was told")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
