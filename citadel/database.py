"""PostgreSQL for the data plane: a small pool of asynchronous connections, beside Django's own.

The path of a request asks it only for what the worker's tables don't know yet; records and changes of configuration
travel here in the background.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import psycopg
from asgiref.sync import sync_to_async
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from citadel.sections import UNESCAPED, Config, ConfigError

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

NOTICES_SILENCE: dict[str, Any] = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
"""Of connections: one that a network has dropped without a word is known to be gone after some ten seconds, not after
the quarter of an hour that systems usually wait.
"""

RECONNECT = 10.0
"""Seconds after which the pool begins anew to look for the database, at once and then 1, 3 and 7 s later: by itself it
would wait twice as long after each attempt, so that whoever needs it would do so for as long again as it was away.
"""

THREADS = 4
"""Of a process, for Django's ORM: each has a connection of its own while it works, beside those of the pool. A silent
database holds each for as long as connecting may take, so that nothing else may wait for one.
"""
_threads = ThreadPoolExecutor(THREADS, "database")
"""Python waits for what runs there when the process ends; what has not begun is cancelled with who waits for it."""

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work`, which uses Django's ORM, gives: for the API's slow paths, never for inference.

    It has a database connection of its own, closed after it: beyond Django's own handler nobody else would close it.
    """
    return await sync_to_async(_and_close, thread_sensitive=False, executor=_threads)(work, *args, **kwargs)


def _and_close(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    from django.db import connection

    try:
        return work(*args, **kwargs)
    finally:
        connection.close()


def make_pool(config: Config) -> Pool:
    """An unopened pool of at most `pools.database` connections; ConfigError where no database is configured."""
    return AsyncConnectionPool(
        address(config),
        min_size=1,
        max_size=config.pools.database,
        timeout=config.timeouts.database,
        reconnect_timeout=RECONNECT,
        reconnect_failed=AsyncConnectionPool.check,  # it tries again where it has given all its connections up
        kwargs={"autocommit": True, "application_name": "citadel", "connect_timeout": 5, **NOTICES_SILENCE},
        open=False,
        name="citadel",
    )


def address(config: Config) -> str:
    """The database's URL, or a ConfigError that says how to get one."""
    if not config.database_url:
        raise ConfigError("no database: start Citadel with bin/run, or set DATABASE_URL=postgresql://…")
    return config.database_url


def parameters(url: str) -> dict[str, str]:
    """What libpq reads in an address. ConfigError when that can't be meant; it quotes nothing of the address."""
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.Error:
        found = {}
    ports = found.get("port", "").split(",")
    # For libpq the name of the database begins at an unescaped / in the password.
    name = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if not found or "@" in name or not all(map(_is_port, ports)):
        raise ConfigError(
            f"it is not an address of PostgreSQL like postgresql://user:password@host:port/name; {UNESCAPED}"
        )
    return found


def place(url: str) -> str:
    """Where libpq looks, of several hosts each; nothing else of the address, which may hold a password anywhere."""
    given = parameters(url)
    host = given.get("hostaddr") or given.get("host") or "localhost"
    return host if host.startswith("/") else f"{host}:{given.get('port') or '5432'}"


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and 0 < int(text) < 65536)
