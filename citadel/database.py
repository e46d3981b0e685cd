"""PostgreSQL for the data plane: a small pool of asynchronous connections, beside Django's own.

The path of a request asks it only for what the worker's tables don't know yet; records and changes of configuration
travel here in the background.
"""

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from citadel.config import Config, ConfigError

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


def make_pool(config: Config) -> Pool:
    """An unopened pool of at most `pools.database` connections; ConfigError where no database is configured."""
    return AsyncConnectionPool(
        address(config),
        min_size=1,
        max_size=config.pools.database,
        timeout=config.timeouts.database,
        kwargs={"autocommit": True, "application_name": "citadel", "connect_timeout": 5},
        open=False,
        name="citadel",
    )


def address(config: Config) -> str:
    """The database's URL, or a ConfigError that says how to get one."""
    if not config.database_url:
        raise ConfigError("no database: start Citadel with bin/run, or set DATABASE_URL=postgresql://…")
    return config.database_url
