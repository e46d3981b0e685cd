"""`python -m citadel.embedded.first_run [--mark MARK] [SERVER_ID=URL …]`: the tables, what the operator begins with,
the demo fleet.

It runs at each start, while the demo servers load their models: one process, since most of the time that it takes is
Django's own start. A home that has no API key for this database gets one, a database that has no administrator gets
`admin`; both are left in `first-run.json`, and `first-run.unseen` beside it until they have been shown. It may be
killed at any point: the file is on the disk, under a name of its own, before the database commits, and gets its real
name after that; the next start finishes what it finds.

Other homes may work on the same database, even start at the same time. Their keys are worth nothing here, since each
home has its own secret; their demo servers stay theirs, under ids with the MARK of their home.
"""

import argparse
import asyncio
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.core.management import call_command

from citadel import config
from citadel.embedded import demo, ports, ready
from citadel.embedded.home import REFUSED_KEY, Home, write_private_json
from citadel.embedded.patience import until

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from apps.gateway.models import Key
    from apps.orchestration.models import Server

USERNAME = "admin"
TEAM = "default"
KEY_NAME = "first-run"
LOCK = 0x63697461
"""Of pg_advisory_lock: any number that others are unlikely to take."""


def main() -> None:
    """Do all three; the arguments say which demo servers run and where, and how the registry calls them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mark", default="", help="comes after the demo servers' ids in the registry")
    parser.add_argument("servers", nargs="*", metavar="SERVER_ID=URL")
    arguments = parser.parse_args()
    django.setup()
    settings = config.load()
    with alone():
        call_command("migrate", interactive=False)
        prepare(Home(settings.home), settings.server.url)
    register(dict(server.split("=", 1) for server in arguments.servers), arguments.mark)


@contextmanager
def alone() -> Iterator[None]:
    """Let other homes that start on this database wait until this one is through."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
    yield
    with connection.cursor() as cursor:  # an exception ends the process and with it the lock
        cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])


def prepare(home: Home, url: str) -> None:
    """Have an administrator, and in `first-run.json` a key that works here, with URL as Citadel's address now."""
    prepared = home.first_run.with_suffix(".prepared")
    addresses = {"url": url, "console": f"{url}/admin/"}
    administrator = _administrator()
    if administrator and _is_known(home.first_run):
        prepared.unlink(missing_ok=True)
        _refresh(home.first_run, addresses)
    elif administrator and _is_known(prepared):  # an earlier start was killed after the database had committed
        prepared.replace(home.first_run)
        _refresh(home.first_run, addresses)
    else:
        _make(home, prepared, addresses, administrator)
        prepared.replace(home.first_run)


def register(servers: Mapping[str, str], mark: str) -> None:
    """Have the running demo servers in the registry under their addresses of today, and no others of this home.

    Waits until they answer: then they say themselves what they serve.
    """
    from apps.orchestration import registry
    from apps.orchestration.models import Server

    for server in demo.FLEET:
        url = servers.get(server.server_id)
        server_id = f"{server.server_id}-{mark}" if mark else server.server_id
        _forget_dead(server, Server.objects.exclude(server_id=server_id), url)
        if url:
            asyncio.run(until(partial(ready.http, f"{url}/health"), demo.START_PATIENCE_SECONDS))
            registry.add(server_id, url, kind=server.kind)
        else:
            Server.objects.filter(server_id=server_id).delete()


def _forget_dead(server: demo.DemoServer, others: "QuerySet[Server]", url: str | None) -> None:
    """Take out what homes on this machine left that were stopped or killed: requests would try them first.

    Those of other machines, which can't be asked from here, stay.
    """
    for other in others.filter(server_id__startswith=f"{server.server_id}-{demo.machine()}-", hostname=ports.LOOPBACK):
        if ports.free(other.port) or other.url == url:
            other.delete()


def _administrator() -> str | None:
    """The login of whoever administers this database; None when nobody does and our name for one is free."""
    from django.contrib.auth import get_user_model
    from django.db.models import Q

    someone = get_user_model()._default_manager.filter(Q(is_superuser=True) | Q(username=USERNAME))
    first = someone.order_by("-is_superuser", "date_joined").first()
    return first.get_username() if first else None


def _is_known(file: Path) -> bool:
    """Whether the database knows the key that this file tells; revoked is known too."""
    try:
        return _key(json.loads(file.read_text())) is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _key(made: Mapping[str, str]) -> "Key | None":
    """The database's row of the key that a file tells, as good or as refused."""
    from django.conf import settings

    from apps.gateway.access.keys.shape import Digester
    from apps.gateway.models import Key

    told = made["api_key"] if "api_key" in made else made[REFUSED_KEY]
    return Key.objects.filter(digest=Digester(settings.SECRET_KEY)(told.encode())).first()


def _make(home: Home, prepared: Path, addresses: Mapping[str, str], administrator: str | None) -> None:
    """Make a key, and the administrator where there is none; a file with no password means that there was one."""
    from django.contrib.auth import get_user_model
    from django.db import transaction

    from apps.gateway.access.keys.life import issue

    login = {"username": administrator or USERNAME}
    with transaction.atomic():
        if not administrator:
            login["password"] = secrets.token_urlsafe(16)
            get_user_model()._default_manager.create_superuser(USERNAME, password=login["password"])
        key = issue(TEAM, KEY_NAME, role="admin", max_priority="critical")
        home.unseen.touch()
        write_private_json(prepared, {**addresses, **login, "api_key": key})


def _refresh(file: Path, addresses: Mapping[str, str]) -> None:
    """The port may be another one than at the first start, and the password too: then the file tells none. A key that
    is revoked or has expired gets a name of its own: were it gone, the next start would make another.
    """
    made = json.loads(file.read_text())
    today = {**made, **addresses}
    refused, good = today.pop(REFUSED_KEY, None), today.pop("api_key", None)
    today["api_key" if _is_in_force(made) else REFUSED_KEY] = good or refused
    if "password" in made and not _opens(made):
        del today["password"]
    if today != made:
        write_private_json(file, today)


def _is_in_force(made: Mapping[str, str]) -> bool:
    """Whether the key that a file tells is still good."""
    from django.utils import timezone

    key = _key(made)
    return key is not None and key.revoked is None and (key.expires is None or key.expires > timezone.now())


def _opens(made: Mapping[str, str]) -> bool:
    """Whether the login that a file tells is still good."""
    from django.contrib.auth import get_user_model

    user = get_user_model()._default_manager.filter(username=made.get("username")).first()
    return user is not None and user.check_password(made["password"])


if __name__ == "__main__":
    main()
