"""`python -m citadel.embedded.first_run [SERVER_ID=URL …]`: the tables, what the operator begins with, the demo fleet.

It runs at each start, while the demo servers load their models: one process, since most of the time that it takes is
Django's own start. At the first start it makes the administrator `admin` and an API key and leaves them in
`first-run.json`. It may be killed at any point: the file is on the disk, under a name of its own, before the database
commits, and gets its real name after that; the next start finishes what it finds.
"""

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import django
from django.core.management import call_command

from citadel import config
from citadel.embedded import demo, ready, web
from citadel.embedded.home import Home, write_private_json
from citadel.embedded.patience import until

USERNAME = "admin"
TEAM = "default"
KEY_NAME = "first-run"


def main(registrations: Sequence[str]) -> None:
    """Do all three; REGISTRATIONS are `SERVER_ID=URL` of those demo servers that run."""
    django.setup()
    settings = config.load()
    call_command("migrate", interactive=False)
    prepare(Home(settings.home), web.url(settings.server.host, settings.server.port))
    register(dict(registration.split("=", 1) for registration in registrations))


def prepare(home: Home, url: str) -> None:
    """Have an administrator, and in `first-run.json` what the first start made, with URL as Citadel's address now."""
    from django.contrib.auth import get_user_model

    prepared = home.first_run.with_suffix(".prepared")
    addresses = {"url": url, "console": f"{url}/admin/"}
    if get_user_model()._default_manager.filter(is_superuser=True).exists():
        _finish(prepared, home.first_run)
        _refresh(home.first_run, addresses)
    else:
        _make(prepared, addresses)
        prepared.replace(home.first_run)


def register(servers: Mapping[str, str]) -> None:
    """Have the running demo servers in the registry under their addresses of today, and no others of the fleet.

    Waits until they answer: then they say themselves what they serve.
    """
    from apps.orchestration import registry
    from apps.orchestration.models import Server

    for server in demo.FLEET:
        url = servers.get(server.server_id)
        if url:
            asyncio.run(until(partial(ready.http, f"{url}/health"), demo.START_PATIENCE_SECONDS))
            registry.register(server.server_id, url, kind=server.kind)
        else:
            Server.objects.filter(server_id=server.server_id).delete()


def _make(prepared: Path, addresses: Mapping[str, str]) -> None:
    from django.contrib.auth import get_user_model
    from django.db import transaction

    from apps.gateway.access import keys

    password = secrets.token_urlsafe(15)
    with transaction.atomic():
        get_user_model()._default_manager.create_superuser(USERNAME, password=password)
        key = keys.issue(TEAM, KEY_NAME, role="admin")
        write_private_json(prepared, {**addresses, "username": USERNAME, "password": password, "api_key": key})


def _finish(prepared: Path, final: Path) -> None:
    """Give the file its real name when an earlier start committed what it tells and was killed before doing so."""
    from django.contrib.auth import authenticate

    if not prepared.exists():
        return
    made = json.loads(prepared.read_text())
    if authenticate(username=made["username"], password=made["password"]):
        prepared.replace(final)
    else:  # that start never committed, and someone made another administrator since
        prepared.unlink()


def _refresh(file: Path, addresses: Mapping[str, str]) -> None:
    """The port may be another one than at the first start."""
    if file.exists():
        made = json.loads(file.read_text())
        if any(made[name] != address for name, address in addresses.items()):
            write_private_json(file, {**made, **addresses})


if __name__ == "__main__":
    main(sys.argv[1:])
