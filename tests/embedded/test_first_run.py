"""The whole without the demo models: the first start's administrator and key, and what later starts make of them."""

import asyncio
import json
import os
import resource
import secrets
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from packaging.utils import canonicalize_name
from psycopg import sql

from citadel.config import ROOT
from citadel.embedded import demo, stores
from citadel.embedded.home import Home, StartError
from citadel.embedded.supervisor import Supervisor
from citadel.sections import Config
from tests.embedded.conftest import Installation, eventually
from tests.house.test_dependencies import requirements
from tests.instance import free_port

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
        connection.execute("DELETE FROM gateway_keyuse")
        connection.execute("DELETE FROM gateway_key")
        connection.execute("TRUNCATE auth_user CASCADE")
    file.rename(prepared)
    first_run(whole)
    anew = json.loads(file.read_text())
    assert anew["password"] != made["password"]
    assert not prepared.exists()
    assert whole.stop() == 0

    # Nobody has seen it yet.
    whole.start()
    assert anew["password"] in whole.heard
    assert anew["api_key"] in whole.heard
    assert whole.stop() == 0


def test_later_starts(whole: Installation, installation: Installation) -> None:
    """They say where login and key are, not what they are; the file follows what has become of them."""
    file = whole.home / "first-run.json"
    installation.start()
    whole.settings |= {**installation.addresses(), "DATABASE_URL": new_database(installation)}
    whole.start()
    made = json.loads(file.read_text())
    assert whole.stop() == 0
    whole.port = free_port()
    stray = whole.home / "config" / "citadel.yaml"
    stray.write_text("server: {port: 1}\n")
    whole.start()
    assert f"Not read: {stray}. Settings stand in {whole.home}/config/global/citadel.yaml" in whole.heard
    assert f"Login and API key of the first start: {file}" in whole.heard
    assert made["password"] not in whole.heard
    assert made["api_key"] not in whole.heard
    today = json.loads(file.read_text())
    assert today == {**made, "url": whole.url.rstrip("/"), "console": f"{whole.url}admin/"}
    assert signs_in(today)
    assert may_list_models(today)
    assert "plain HTTP" not in whole.heard

    change = "u = get_user_model().objects.get(); u.set_password('another'); u.save(); print(u)"
    manage(whole, "shell", "-c", f"from django.contrib.auth import get_user_model; {change}")
    assert whole.stop() == 0
    whole.settings["CITADEL_SERVER__HOST"] = "0.0.0.0"
    whole.start()
    now = json.loads(file.read_text())
    assert now == {name: value for name, value in today.items() if name != "password"}
    assert f"  API key of the first start: {file}" in whole.heard
    assert "listens on 0.0.0.0, every address of this machine, in plain HTTP" in whole.heard
    assert signs_in({**now, "password": "another"})
    assert whole.stop() == 0
    assert whole.living() == []


def test_a_key_that_was_revoked_is_not_told_as_good(whole: Installation, installation: Installation) -> None:
    """Nor is another one made in its place: it is no first start any more."""
    file = whole.home / "first-run.json"
    installation.start()
    whole.settings |= {**installation.addresses(), "DATABASE_URL": new_database(installation)}
    whole.start()
    made = json.loads(file.read_text())
    manage(whole, "key", "revoke", manage(whole, "key", "list").split("\t")[0])
    for _ in range(2):
        assert whole.stop() == 0
        whole.start()
        assert f"  Login of the first start: {file}" in whole.heard
        assert "API key of the first start is revoked or has expired" in whole.heard
        assert "bin/manage key create" in whole.heard
        rest = {name: value for name, value in made.items() if name != "api_key"}
        assert json.loads(file.read_text()) == {**rest, "refused_api_key": made["api_key"]}
        assert manage(whole, "shell", "-c", "from apps.gateway.models import Key; print(Key.objects.count())") == "1"
    assert whole.stop() == 0


def test_with_the_stores_of_someone_else(whole: Installation, installation: Installation) -> None:
    installation.start()
    whole.settings.update(installation.addresses())
    whole.start()
    assert may_list_models(json.loads((whole.home / "first-run.json").read_text()))
    ours = {"supervisor", "web-1", "worker", "prober", "beat"}
    eventually(lambda: {path.stem for path in (whole.home / "run").glob("*.pid")} == ours)
    assert not (whole.home / "postgres").exists()
    assert whole.stop() == 0


def test_the_console_behind_a_proxy_that_speaks_tls(whole: Installation) -> None:
    whole.settings["CITADEL_SERVER__PUBLIC_URL"] = "https://citadel.example"
    whole.settings["CITADEL_SERVER__ALLOWED_HOSTS"] = "[other.example]"
    whole.start()
    made = json.loads((whole.home / "first-run.json").read_text())
    assert logs_in(made, "https://citadel.example", host="citadel.example") == 302
    assert logs_in(made, "https://evil.example", host="citadel.example") == 403
    assert logs_in(made, "http://citadel.example", host="other.example") == 403
    for place in ("/health/live", "/v1/models", "/admin/login/", "/static/admin/css/base.css", "/nothing"):
        told = httpx.get(made["url"] + place).headers["strict-transport-security"]
        assert told == "max-age=31536000; includeSubDomains", place
    assert whole.stop() == 0


def test_of_several_web_workers_each_is_waited_for(whole: Installation, installation: Installation) -> None:
    """They share one address, at which another one answers meanwhile."""
    installation.start()
    whole.settings |= {**installation.addresses(), "CITADEL_SERVER__WORKERS": "3"}
    whole.start()
    logs = [whole.home / "logs" / f"web-{number}.log" for number in (1, 2, 3)]
    assert [starts(log) for log in logs] == [1, 1, 1]
    os.kill(whole.pid("web-2"), signal.SIGKILL)
    eventually(lambda: "web-2 answers again" in whole.said())
    assert [starts(log) for log in logs] == [1, 2, 1]
    assert whole.stop() == 0


def starts(log: Path) -> int:
    return log.read_text().count("Application startup complete.")


def test_homes_that_share_their_stores(fresh: Make, installation: Installation) -> None:
    """Each has a secret of its own, so none can use another's key; the login is the database's and made once."""
    installation.start()
    stores = {**installation.addresses(), "DATABASE_URL": new_database(installation)}
    one, other, third = homes = [fresh(name) for name in ("one", "other", "third")]
    for home in homes:
        home.module, home.settings = "citadel.embedded", stores
    with ThreadPoolExecutor() as at_once:
        list(at_once.map(Installation.start, (one, other)))
    assert asks(one)
    assert asks(other)
    assert len([home for home in (one, other) if "Password" in home.heard]) == 1
    assert len([home for home in (one, other) if "'admin' is there already" in home.heard]) == 1
    assert len(registered(stores)) == 4

    one.kill_all()
    assert asks(other)  # the servers of the killed one are still in the registry
    third.start()
    assert len(registered(stores)) == 4
    assert not registered(stores) & {f"demo-chat-{demo.mark(Home(one.home))}"}
    assert asks(third)
    assert asks(other)
    assert third.stop() == 0

    third.settings = {**stores, "CITADEL_DEMO_FLEET": "0"}
    third.start()
    assert "curl" not in third.heard
    assert len(registered(stores)) == 2
    assert asks(other)
    assert (third.stop(), other.stop()) == (0, 0)


def test_a_home_that_changes_its_database(whole: Installation, installation: Installation) -> None:
    """The key of the first one is worth nothing in the second."""
    installation.start()
    whole.settings["DATABASE_URL"] = new_database(installation)
    whole.start()
    key = json.loads((whole.home / "first-run.json").read_text())["api_key"]
    assert whole.stop() == 0
    whole.settings["DATABASE_URL"] = new_database(installation)
    whole.start()
    made = json.loads((whole.home / "first-run.json").read_text())
    assert made["api_key"] != key
    assert made["api_key"] in whole.heard
    assert may_list_models(made)
    assert signs_in(made)
    assert whole.stop() == 0


def test_a_worker_may_open_as_many_files_as_the_machine_allows(whole: Installation, installation: Installation) -> None:
    """Each connection is one; shells often allow no more than 1,024 or 256 until a program asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    installation.start()
    whole.settings.update(installation.addresses())
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        whole.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed, _ = psutil.Process(whole.pid("web-1")).rlimit(psutil.RLIMIT_NOFILE)
    assert allowed == min(hard, 65_536)
    assert whole.stop() == 0


def test_a_secret_that_is_too_short_is_told_before_anything_starts(whole: Installation) -> None:
    whole.settings["CITADEL_SECURITY__SECRET_KEY"] = "short"
    process = whole.launch()
    [said] = whole.output().strip().splitlines()
    assert process.returncode == 1
    assert said.startswith("security.secret_key is shorter than 32 characters: ")
    assert not (whole.home / "postgres").exists()


async def test_a_store_that_is_given_and_silent_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FOREIGN_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(stores, "QUIET_SECONDS", 0.1)
    home = Home(folder / "home")
    home.prepare()
    dead = {"database_url": "postgresql://u:hidden@127.0.0.1:1/x", "redis_url": "redis://:hidden@127.0.0.1:1/0"}
    settings = Config(home=home.path, **dead, redis_cache_url=dead["redis_url"])
    said: list[str] = []
    told = "DATABASE_URL is given, but nothing that Citadel can use answers there"
    with pytest.raises(StartError, match=told) as raised:
        await stores.start(home, settings, Supervisor(home, print), said.append)
    assert "hidden" not in str(raised.value)
    assert "hidden" not in "".join(said)
    assert [line.partition(" (")[0] for line in sorted(said) if line.startswith("Waiting")] == [
        f"Waiting up to 0.3 s for {name} at 127.0.0.1:1" for name in ("DATABASE_URL", "REDIS_CACHE_URL", "REDIS_URL")
    ]
    assert {line.partition(" is given")[0] for line in said if line.endswith("Citadel starts without it")} <= {
        "REDIS_URL",
        "REDIS_CACHE_URL",
    }
    assert "(Connection refused)" in next(line for line in said if "DATABASE_URL" in line)


async def test_a_redis_that_is_given_and_refuses_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is away may come back: no start without it is in vain."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"-NOAUTH Authentication required.\r\n")
        writer.close()

    monkeypatch.setattr(stores, "FOREIGN_PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(stores, "QUIET_SECONDS", 0.1)
    async with await asyncio.start_unix_server(refuse, folder / "redis"):
        with pytest.raises(StartError, match="answers there: NOAUTH Authentication required"):
            await stores._given_redis("REDIS_URL", f"unix://{folder / 'redis'}", print)
    said: list[str] = []
    url = f"unix://{folder / 'nobody'}"
    assert await stores._given_redis("REDIS_URL", url, said.append) == url
    assert said[-1].endswith("Citadel starts without it")


def new_database(installation: Installation) -> str:
    """The address of an empty one on this installation's PostgreSQL."""
    url = installation.addresses()["DATABASE_URL"]
    name = f"new_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url.replace("/citadel?", f"/{name}?")


def registered(stores: dict[str, str]) -> set[str]:
    with psycopg.connect(stores["DATABASE_URL"]) as connection:
        return {row[0] for row in connection.execute("SELECT server_id FROM orchestration_server")}


def asks(home: Installation) -> bool:
    """Whether the line that it printed for the shell is answered."""
    line = next(line for line in home.heard.splitlines() if line.strip().startswith("curl "))
    told = subprocess.run(["/bin/sh", "-c", f"{line} --fail -sS"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return bool(json.loads(told.stdout)["choices"])


def signs_in(made: dict[str, str]) -> bool:
    with httpx.Client(base_url=made["url"], follow_redirects=False) as browser:
        browser.get("/admin/login/")
        form = {"username": made["username"], "password": made["password"], "next": "/admin/"}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        answer = browser.post("/admin/login/", data=form)
    return answer.status_code == 302 and answer.headers["location"] == "/admin/"


def logs_in(made: dict[str, str], origin: str, *, host: str) -> int:
    """The status of a browser's login that a proxy passes on."""
    login = f"{made['url']}/admin/login/"
    page = httpx.get(login, headers={"host": host})
    cookie = page.headers["set-cookie"]
    assert is_of_this_host_through_tls(cookie)
    token = cookie.split(";")[0].removeprefix("__Host-csrftoken=")
    form = {"username": made["username"], "password": made["password"], "csrfmiddlewaretoken": token}
    headers = {"host": host, "origin": origin, "cookie": f"__Host-csrftoken={token}", "x-forwarded-proto": "https"}
    answer = httpx.post(login, data={**form, "next": "/admin/"}, headers=headers)
    cookies = answer.headers.get_list("set-cookie")
    assert all(map(is_of_this_host_through_tls, cookies))
    names = {cookie.partition("=")[0].removeprefix("__Host-") for cookie in cookies}
    assert answer.status_code != 302 or names >= {"sessionid", "csrftoken", "citadel_device"}
    return answer.status_code


def is_of_this_host_through_tls(cookie: str) -> bool:
    """As browsers want it of one that is called so (RFC 6265bis, 4.1.3.2)."""
    said = cookie.split("; ")
    return cookie.startswith("__Host-") and {"Secure", "Path=/"} <= set(said) and "Domain" not in cookie


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


HIDING = """
import sys

class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}} in requirements.txt", name=name)

sys.meta_path.insert(0, Hiding())
"""


def test_all_processes_run_with_what_requirements_txt_names(whole: Installation, tmp_path: Path) -> None:
    """What the tests need besides is hidden from them: a fresh machine does not have it."""
    required = {canonicalize_name(one.name) for one, _ in requirements("requirements.txt")}
    hidden = {
        package
        for package, distributions in packages_distributions().items()
        if not required & {canonicalize_name(name) for name in distributions}
    }
    assert {"pytest", "hypothesis", "onnxruntime"} <= hidden
    (tmp_path / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    whole.settings["PYTHONPATH"] = str(tmp_path)
    whole.start()
    assert {"web-1", "worker", "prober", "beat"} <= {file.stem for file in (whole.home / "run").glob("*.pid")}
    assert whole.stop() == 0
