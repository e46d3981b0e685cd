"""Django in the tests' own process on the database of a Citadel that they started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.instance import Instance


@contextmanager
def working_on(instance: Instance) -> Iterator[Instance]:
    """Models, secret and configuration are those of that Citadel meanwhile, and what they were before afterwards."""
    from django.conf import settings

    from citadel import config
    from citadel.settings import database

    databases, secret, home = settings.DATABASES, settings.SECRET_KEY, os.environ.get("CITADEL_HOME")
    os.environ["CITADEL_HOME"] = str(instance.home)
    config.load.cache_clear()
    try:
        _use({"default": database(instance.database_url)}, config.load().secret)
        yield instance
    finally:
        os.environ.pop("CITADEL_HOME")
        if home is not None:
            os.environ["CITADEL_HOME"] = home
        config.load.cache_clear()
        _use(databases, secret)


def _use(databases: dict[str, object], secret: str) -> None:
    from django.conf import settings
    from django.db import connections

    connections.close_all()
    settings.DATABASES, settings.SECRET_KEY = databases, secret
    connections.settings = connections.configure_settings(databases)
    with suppress(AttributeError):  # this thread has made none yet
        del connections["default"]
