"""The whole without the demo models: the first start's administrator and key, and what later starts make of them."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from citadel.config import ROOT, Config
from citadel.embedded import stores
from citadel.embedded.home import Home, StartError
from citadel.embedded.supervisor import Supervisor
from tests.embedded.conftest import Installation, free_port

Make = Callable[..., Installation]


@pytest.fixture
def whole(fresh: Make) -> Iterator[Installation]:
    one = fresh()
    one.module = "citadel.embedded"
    one.settings = {"CITADEL_DEMO_FLEET": "0"}
    yield one
    if one.process and one.process.poll() is None:
        one.stop()


def test_the_first_start_and_an_interrupted_one(whole: Installation) -> None:
    file = whole.home / "first-run.json"
    whole.start()
    made = json.loads(file.read_text())
    assert set(made) == {"url", "console", "username", "password", "api_key"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made["url"] + "/" == whole.url
    assert made["password"] in whole.heard
    assert signs_in(made)
    assert may_list_models(made)
    curl = next(line for line in whole.heard.splitlines() if line.strip().startswith("curl "))
    assert shlex.split(curl)[1:] == [f"{made['url']}/v1/models", "-H", f"Authorization: Bearer {made['api_key']}"]
    assert manage(whole, "shell", "-c", "from django.db import connection; print(connection.vendor)") == "postgresql"

    # Killed after the database had committed and before the file had its name.
    prepared = file.with_name("first-run.prepared")
    file.rename(prepared)
    first_run(whole)
    assert json.loads(file.read_text()) == made
    assert not prepared.exists()

    # Killed before the database had committed: what the file says never was.
    with psycopg.connect(whole.addresses()["DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM gateway_key")
        connection.execute("TRUNCATE auth_user CASCADE")
    file.rename(prepared)
    first_run(whole)
    anew = json.loads(file.read_text())
    assert anew["password"] != made["password"]
    assert not prepared.exists()
    assert whole.stop() == 0

    # An ordinary second start, on another port, says where these things are, not what they are.
    whole.port = free_port()
    whole.start()
    assert str(file) in whole.heard
    assert anew["password"] not in whole.heard
    assert anew["api_key"] not in whole.heard
    today = json.loads(file.read_text())
    assert today == {**anew, "url": whole.url.rstrip("/"), "console": f"{whole.url}admin/"}
    assert signs_in(today)
    assert may_list_models(today)
    assert whole.stop() == 0
    assert whole.living() == []


def test_with_the_stores_of_someone_else(whole: Installation, installation: Installation) -> None:
    installation.start()
    whole.settings.update(installation.addresses())
    whole.start()
    assert may_list_models(json.loads((whole.home / "first-run.json").read_text()))
    assert {path.stem for path in (whole.home / "run").glob("*.pid")} == {"supervisor", "web-1"}
    assert not (whole.home / "postgres").exists()
    assert whole.stop() == 0


async def test_a_store_that_is_given_and_silent_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FOREIGN_PATIENCE_SECONDS", 0.3)
    home = Home(folder / "home")
    home.prepare()
    dead = {"database_url": "postgresql://u:hidden@127.0.0.1:1/x", "redis_url": "redis://:hidden@127.0.0.1:1/0"}
    settings = Config(home=home.path, **dead, redis_cache_url=dead["redis_url"])
    with pytest.raises(StartError, match="_URL is given, but nothing that Citadel can use answers there") as raised:
        await stores.start(home, settings, Supervisor(home, print), print)
    assert "hidden" not in str(raised.value)


def signs_in(made: dict[str, str]) -> bool:
    with httpx.Client(base_url=made["url"], follow_redirects=False) as browser:
        browser.get("/admin/login/")
        form = {"username": made["username"], "password": made["password"], "next": "/admin/"}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        answer = browser.post("/admin/login/", data=form)
    return answer.status_code == 302 and answer.headers["location"] == "/admin/"


def may_list_models(made: dict[str, str]) -> bool:
    answer = httpx.get(f"{made['url']}/v1/models", headers={"Authorization": f"Bearer {made['api_key']}"})
    return answer.status_code == 200 and httpx.get(f"{made['url']}/v1/models").status_code == 401


def first_run(installation: Installation) -> None:
    """What each start runs, beside a Citadel that runs already."""
    environment = {
        **os.environ,
        **installation.addresses(),
        "CITADEL_HOME": str(installation.home),
        "CITADEL_SERVER__PORT": str(installation.port),
        "DJANGO_SETTINGS_MODULE": "citadel.settings",
    }
    subprocess.run([sys.executable, "-m", "citadel.embedded.first_run"], cwd=ROOT, env=environment, check=True)


def manage(installation: Installation, *arguments: str) -> str:
    environment = {**os.environ, "CITADEL_HOME": str(installation.home)}
    command = [sys.executable, ROOT / "manage.py", *arguments]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout.splitlines()[-1]
