"""The Citadel that is looked at: its home, its settings, and connections to what it stands on, made when needed."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import django
import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from citadel import config, presence
from citadel.sections import Config, ConfigError

PATIENCE = 5
"""Seconds that anything may take to answer."""


class Unavailable(Exception):
    """What a check needs is away; one check tells the `details`, the others that they could not be made."""

    def __init__(self, reason: str, details: str = ""):
        super().__init__(reason)
        self.details = details or reason


class Asleep(Unavailable):
    """What a check needs is there while Citadel runs, and it does not; `processes` tells that, the others nothing."""

    def __init__(self) -> None:
        super().__init__("Citadel is not running")


class Patient:
    """One Citadel, by its environment. To be used in a `with`, at whose end all connections are closed."""

    def __init__(self, environ: Mapping[str, str]):
        self.environ = environ
        self.home: Path = config.home_folder(environ)
        self._open = ExitStack()

    def __enter__(self) -> "Patient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    @cached_property
    def config(self) -> Config:
        """Its settings; Unavailable when they can't be used."""
        try:
            return presence.settings(self.environ)
        except ConfigError:
            raise Unavailable("the configuration can't be used") from None

    @cached_property
    def asleep(self) -> bool:
        """Whether it lacks what bin/run would start: no settings name it, and no running Citadel has told of it."""
        try:
            return not (self.config.database_url and self.config.redis_url)
        except Unavailable:
            return False

    @property
    def database(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """A connection to PostgreSQL; Asleep where there is none, Unavailable where it can't be had; tried once."""
        if isinstance(self._database, Unavailable):
            raise self._database
        return self._database

    @cached_property
    def _database(self) -> "psycopg.Connection[tuple[Any, ...]] | Unavailable":
        if not self.config.database_url:
            return Asleep()
        try:
            connection = psycopg.connect(
                self.config.database_url, connect_timeout=PATIENCE, autocommit=True, application_name="citadel doctor"
            )
            connection.execute(f"SET statement_timeout = '{PATIENCE}s'")
        except psycopg.Error as error:
            return Unavailable("PostgreSQL is away", f"PostgreSQL does not answer: {' '.join(str(error).split())}")
        return self._open.enter_context(connection)

    @cached_property
    def state(self) -> "redis.Redis":
        """A connection to the Redis for state; Asleep where none is configured."""
        if not self.config.redis_url:
            raise Asleep
        return self.redis(self.config.redis_url)

    def set_up_django(self) -> None:
        """Lets rows be read by Django; Unavailable where it has no database or no secret."""
        _ = self.database
        try:
            _ = self.config.secret
        except ConfigError:
            raise Unavailable("there is no secret key") from None
        django.setup()

    def redis(self, url: str) -> "redis.Redis":
        """A connection to the Redis at that address, not yet made."""
        made: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)
        )
        self._open.callback(made.close)
        return made
