"""Where Citadel keeps its things: PostgreSQL and two Redis, the operator's where addresses are given, else our own."""

from collections.abc import Awaitable, Callable

from citadel.database import place
from citadel.embedded import ready
from citadel.embedded.home import Home, StartError
from citadel.embedded.patience import together, until
from citadel.embedded.postgres import Postgres
from citadel.embedded.redis import STATE_SETTINGS, Redis, cache_settings
from citadel.embedded.supervisor import Supervisor
from citadel.redis_address import Address
from citadel.sections import Config

FOREIGN_PATIENCE_SECONDS = 30.0
QUIET_SECONDS = 2.0
"""Of those, before the person at the terminal is told what is waited for."""

Say = Callable[[str], None]
Question = Callable[[str], Awaitable[str | None]]


async def start(home: Home, config: Config, supervisor: Supervisor, say: Say) -> dict[str, str]:
    """Have all three answer, but for a given Redis that is away. Gives their addresses by the names of the environment
    variables; StartError.
    """
    caching = cache_settings(config.cache.max_memory_mb)
    given = {
        "DATABASE_URL": config.database_url,
        "REDIS_URL": config.redis_url,
        "REDIS_CACHE_URL": config.redis_cache_url,
    }
    addresses = await together(
        _given("DATABASE_URL", url, place(url), ready.postgres, say)
        if (url := given["DATABASE_URL"])
        else _postgres(Postgres(home), supervisor, say),
        _given_redis("REDIS_URL", url, say)
        if (url := given["REDIS_URL"])
        else _redis(Redis(home, "redis", STATE_SETTINGS), supervisor, say),
        _given_redis("REDIS_CACHE_URL", url, say)
        if (url := given["REDIS_CACHE_URL"])
        else _redis(Redis(home, "redis-cache", caching), supervisor, say),
    )
    return dict(zip(given, addresses, strict=True))


async def _postgres(postgres: Postgres, supervisor: Supervisor, say: Say) -> str:
    if postgres.is_new:
        say("Making the database ...")
    await postgres.create(supervisor)
    await supervisor.start(postgres.child())
    say("PostgreSQL answers")
    return postgres.url


async def _redis(redis: Redis, supervisor: Supervisor, say: Say) -> str:
    await supervisor.start(redis.child())
    say(f"Redis answers ({redis.name})")
    return redis.url


async def _given(variable: str, url: str, place: str, question: Question, say: Say) -> str:
    trouble = await until(lambda: question(url), QUIET_SECONDS)
    if trouble:
        say(f"Waiting up to {FOREIGN_PATIENCE_SECONDS:g} s for {variable} at {place} ({_in_short(trouble)})")
        trouble = await until(lambda: question(url), FOREIGN_PATIENCE_SECONDS - QUIET_SECONDS)
    if trouble:
        raise StartError(f"{variable} is given, but nothing that Citadel can use answers there: {trouble}")
    say(f"{variable}: the server at {place} answers")
    return url


async def _given_redis(variable: str, url: str, say: Say) -> str:
    """Citadel serves without one that is away, and uses it as soon as it answers. StartError when it refuses us."""
    try:
        return await _given(variable, url, _redis_place(url), ready.redis_server, say)
    except StartError as error:
        if await ready.redis_refuses(url):
            raise
        say(f"{error}. Citadel starts without it")
        return url


def _redis_place(url: str) -> str:
    there = Address(url)
    return there.path or f"{there.host}:{there.port}"


def _in_short(trouble: str) -> str:
    """Of PostgreSQL's lines the first one's end: the address before it is told already."""
    return trouble.splitlines()[0].rpartition(": ")[2].strip()
