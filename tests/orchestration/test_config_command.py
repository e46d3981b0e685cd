"""`bin/manage config show`: what is in force and where it came from, and no secret."""

import json

import yaml

from tests.command import manage
from tests.instance import Instance


def test_it_shows_every_setting_of_the_running_citadel_and_no_secret(citadel: Instance) -> None:
    shown = manage(citadel.home, "config", "show")
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = dict(line.split(" = ", 1) for line in shown.stdout.splitlines())
    services = citadel.home / "run" / "services.json"
    secrets = citadel.home / "config" / "secrets" / "citadel.yaml"
    assert rows["security.secret_key"] == f"(hidden)  # {secrets}"
    for name in ("database_url", "redis_url", "redis_cache_url"):
        assert rows[name] == f"(hidden)  # {services}"
    assert rows["cache.chat_ttl"] == "3600  # default"
    port = citadel.url.rpartition(":")[2]
    assert rows["server.port"] == f"{port}  # environment of the running Citadel"
    secret = yaml.safe_load(secrets.read_text())["security"]["secret_key"]
    addresses = [url for name, url in json.loads(services.read_text()).items() if name.endswith("_URL")]
    assert len(addresses) == 3
    for hidden in (secret, *addresses):
        assert hidden not in shown.stdout
