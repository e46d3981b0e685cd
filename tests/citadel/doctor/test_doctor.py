"""`bin/manage doctor`: what is really broken is found and told with its remedy, and the rest is looked at as well."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest
import redis

from apps.orchestration.health.board import SAY
from citadel import config
from citadel.doctor.database import fits, needed
from citadel.doctor.machine import agree, space
from citadel.doctor.rounds import CHECKS
from citadel.sections import Config, PoolsSection, ServerSection
from tests.command import manage, run
from tests.fleet.control import Fleet
from tests.instance import ROOT, Instance, free_port, running

OUT = r"{} answers, but gets no requests: unhealthy \({}\) since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


@dataclass(frozen=True)
class Report:
    """What the doctor said."""

    code: int
    text: str

    def lines(self, level: str, subject: str) -> list[str]:
        """Its findings of that level on that subject."""
        head = f"{level:8} {subject}: "
        return [line.removeprefix(head) for line in self.text.splitlines() if line.startswith(head)]

    @property
    def broken(self) -> list[str]:
        """Subjects of which something is broken."""
        return [
            line.split(": ")[0].removeprefix("broken").strip()
            for line in self.text.splitlines()
            if line[:6] == "broken"
        ]


@dataclass(frozen=True)
class Patient:
    """A Citadel of its own, which may be broken, with one server in its fleet."""

    citadel: Instance
    server: Fleet

    def examined(self, **environment: str) -> Report:
        words = [f"{name}={value}" for name, value in environment.items()]
        done = run(self.citadel.home, "env", *words, sys.executable, str(ROOT / "manage.py"), "doctor")
        assert "Traceback" not in done.stderr, done.stderr
        for secret in self.secrets():
            assert secret not in done.stdout + done.stderr
        return Report(done.returncode, done.stdout)

    def probe(self, server_id: str, *, times: int) -> None:
        """Has a server probed at once."""
        page = f"{self.citadel.url}/orchestration/servers/{server_id}/health?probe=true"
        for _ in range(times):
            told = httpx.get(page, headers={"Authorization": f"Bearer {self.citadel.admin_key}"}, timeout=30)
            assert told.status_code == 200, told.text

    def secrets(self) -> list[str]:
        secret = config.read({"CITADEL_HOME": str(self.citadel.home)})[0].secret if self._readable() else "?" * 40
        return [secret, str(urlsplit(self.citadel.database_url).password), self.citadel.admin_key]

    def _readable(self) -> bool:
        return not (self.citadel.home / "config/secrets/citadel.yaml").stat().st_mode & 0o077


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with (
        running(tmp_path_factory.mktemp("patient") / "home", {"CITADEL_DEMO_FLEET": "0"}) as citadel,
        Fleet.start(models=["one", "two"]) as server,
    ):
        added = manage(citadel.home, "server", "add", "good-1", server.url)
        assert added.returncode == 0, added.stderr
        yield Patient(citadel, server)


def test_one_that_is_well(patient: Patient) -> None:
    report = patient.examined()
    assert (report.code, report.broken) == (0, []), report.text
    for subject in CHECKS:
        assert report.lines("ok", subject), f"{subject}:\n{report.text}"
    assert report.lines("ok", "servers") == ["good-1 answers and has 2 models"]
    assert "supervisor" in report.lines("ok", "processes")[0]


def test_a_server_that_refuses_and_one_with_other_models(patient: Patient) -> None:
    home = patient.citadel.home
    for name in ("gone-1", "off-1"):
        manage(home, "server", "add", name, f"http://127.0.0.1:{free_port()}", "--model", "m")
    manage(home, "server", "disable", "off-1")
    manage(home, "server", "add", "other-1", patient.server.url, "--model", "one", "--model", "three")
    manage(home, "server", "add", "own-1", patient.server.url, "--model", "one", "--model", "three")
    manage(home, "server", "add", "own-2", patient.server.url, "--model", "one")
    for name in ("more-1", "kind-1"):
        manage(home, "server", "add", name, patient.server.url)
    with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM orchestration_servedmodel WHERE name = 'two' AND server_id = "
            "(SELECT id FROM orchestration_server WHERE server_id = 'more-1')"
        )
        connection.execute("UPDATE orchestration_server SET kind = 'ollama' WHERE server_id = 'kind-1'")
        connection.execute("UPDATE orchestration_server SET registered_by = 'k' WHERE server_id LIKE 'own-%'")
        connection.execute(
            "UPDATE orchestration_servedmodel SET named_by = 'registration' WHERE server_id IN "
            "(SELECT id FROM orchestration_server WHERE registered_by = 'k')"
        )
    try:
        report = patient.examined()
    finally:
        for name in ("gone-1", "off-1", "kind-1", "other-1", "own-1", "own-2", "more-1"):
            manage(home, "server", "remove", name)
    assert report.code == 1
    gone, kind, other, own = report.lines("broken", "servers")
    assert gone.startswith("gone-1: http://127.0.0.1:")
    assert "can't be asked" in gone
    assert kind == "kind-1 is of kind openai, not ollama"
    assert (other, own) == ("other-1 does not have three", "own-1 does not have three")
    assert report.lines("warning", "servers") == [
        f"{name} has also two, which the registry does not know" for name in ("more-1", "own-2")
    ]
    assert report.lines("ok", "servers") == [
        "not asked, since they are disabled or wait for approval: off-1",
        "good-1 answers and has 2 models",
    ]
    assert f"bin/manage server add other-1 {patient.server.url}" in report.text, "a refresh leaves what is named"
    assert "mend what own-1 registers with" in report.text


def test_a_server_that_is_stopped_does_not_answer(patient: Patient) -> None:
    """The kernel still takes its connections."""
    patient.server.stop()
    try:
        report = patient.examined()
    finally:
        patient.server.cont()
        patient.probe("good-1", times=5)
    [said] = report.lines("broken", "servers")
    assert said == f"good-1: {patient.server.url} can't be asked: no answer within 5 s"
    assert report.lines("ok", "servers") == []


def test_a_server_that_answers_and_is_out(patient: Patient) -> None:
    """That it tells its models does not mean that it gets requests."""
    home = patient.citadel.home
    with Fleet.start("llamacpp", ["three"]) as sick:
        added = manage(home, "server", "add", "sick-1", sick.url)
        assert added.returncode == 0, added.stderr
        sick.behave("error 503", path="/health")
        patient.probe("sick-1", times=3)
        try:
            report = patient.examined()
            manage(home, "server", "drain", "sick-1")
            drained = patient.examined()
        finally:
            manage(home, "server", "remove", "sick-1")
    [said] = report.lines("broken", "servers")
    assert re.fullmatch(OUT.format("sick-1", "probe: status_503"), said), said
    assert "sick-1 answers" not in "".join(report.lines("ok", "servers"))
    assert "its health page" in report.text
    assert report.code == 1
    assert drained.code == 0, drained.text
    assert drained.lines("warning", "servers")[0].startswith("sick-1 is draining: ")


@pytest.mark.parametrize(
    ("source", "finder", "mend"),
    [
        ("traffic", "traffic", "requests fail there"),
        ("heartbeat", "heartbeat", "does its agent still run"),
        ("webhook", "heartbeat", "bin/manage server enable good-1"),
    ],
)
def test_who_found_a_server_out_and_what_to_do(patient: Patient, source: str, finder: str, mend: str) -> None:
    with redis.Redis.from_url(patient.citadel.redis_url) as board:
        board.eval(SAY.text, 0, "good-1", source, "unhealthy", "hot", "{}", "[]", "-1")
        try:
            report = patient.examined()
        finally:
            board.eval(SAY.text, 0, "good-1", source, "healthy", "", "{}", "[]", "-1")
    [said] = report.lines("broken", "servers")
    assert re.fullmatch(OUT.format("good-1", f"{finder}: hot"), said), said
    assert mend in report.text


def test_a_server_without_a_list_of_models_may_have_those_that_were_named(patient: Patient) -> None:
    home = patient.citadel.home
    with Fleet.start(models=["m"]) as listless:
        assert manage(home, "server", "add", "found-1", listless.url).returncode == 0
        listless.behave("error 404", path="/*")
        added = manage(home, "server", "add", "named-1", listless.url, "--kind", "openai", "--model", "m")
        assert added.returncode == 0, added.stderr
        try:
            report = patient.examined()
        finally:
            for name in ("found-1", "named-1"):
                manage(home, "server", "remove", name)
        page = f"{listless.url}/v1/models answered 404"
    assert report.lines("broken", "servers") == [f"found-1: {page}"]
    assert report.lines("warning", "servers") == [f"named-1 does not list its models, which were named: {page}"]


def test_a_single_llama_cpp_has_its_model_by_any_name_that_was_given(patient: Patient) -> None:
    """As two of them do that balance one model; a name that nobody has given is gone all the same."""
    home = patient.citadel.home
    with Fleet.start("llamacpp", ["/models/m.gguf"]) as single:
        for name in ("any-1", "any-2"):
            assert manage(home, "server", "add", name, single.url, "--model", "m").returncode == 0
        try:
            report = patient.examined()
            with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
                connection.execute(
                    "UPDATE orchestration_servedmodel SET named_by = '' WHERE server_id = "
                    "(SELECT id FROM orchestration_server WHERE server_id = 'any-2')"
                )
            unnamed = patient.examined()
        finally:
            for name in ("any-1", "any-2"):
                manage(home, "server", "remove", name)
    assert (report.code, report.broken) == (0, []), report.text
    assert {"any-1 answers and has 1 models", "any-2 answers and has 1 models"} <= {*report.lines("ok", "servers")}
    assert unnamed.lines("broken", "servers") == ["any-2 does not have m"]


def test_a_server_that_is_degraded_is_a_warning(patient: Patient) -> None:
    with redis.Redis.from_url(patient.citadel.redis_url) as board:
        board.eval(SAY.text, 0, "good-1", "traffic", "degraded", "slow", "{}", "[]", "-1")
        try:
            report = patient.examined()
        finally:
            board.eval(SAY.text, 0, "good-1", "traffic", "healthy", "", "{}", "[]", "-1")
    assert (report.code, report.broken) == (0, []), report.text
    [said] = report.lines("warning", "servers")
    assert said.startswith("good-1 answers, and is degraded (traffic: slow) since ")


def test_one_that_was_drained_may_be_stopped(patient: Patient) -> None:
    """It is what draining is for: a script that asks the doctor then goes on."""
    home, url = patient.citadel.home, f"http://127.0.0.1:{free_port()}"
    for name in ("drained-1", "plain-1"):
        manage(home, "server", "add", name, url, "--model", "m")
        manage(home, "server", "drain", name)
    with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
        connection.execute("UPDATE orchestration_server SET kind = 'http' WHERE server_id = 'plain-1'")
    try:
        report = patient.examined()
    finally:
        for name in ("drained-1", "plain-1"):
            manage(home, "server", "remove", name)
    assert (report.code, report.broken) == (0, []), report.text
    for name, said in zip(("drained-1", "plain-1"), report.lines("warning", "servers"), strict=True):
        assert said.startswith(f"{name} is draining: {name}: {url}")
    assert "bin/manage server remove drained-1" in report.text


def test_a_plain_server_is_asked_plainly(patient: Patient) -> None:
    rows = [("web-ok", patient.server.url, "/health"), ("web-bad", f"http://127.0.0.1:{free_port()}", "")]
    with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
        for name, url, page in rows:
            manage(patient.citadel.home, "server", "add", name, url, "--model", "m")
            connection.execute(
                "UPDATE orchestration_server SET kind = 'http', health_endpoint = %s WHERE server_id = %s", (page, name)
            )
        manage(patient.citadel.home, "server", "add", "web-none", patient.server.url, "--kind", "http")
        try:
            report = patient.examined()
        finally:
            connection.execute("DELETE FROM orchestration_servedmodel WHERE name = 'm'")
            connection.execute("DELETE FROM orchestration_server WHERE kind = 'http'")
    assert "web-ok answers" in report.lines("ok", "servers")
    assert "web-none answers, as a plain web server without models" in report.lines("ok", "servers")
    assert report.lines("broken", "servers")[0].startswith("web-bad: http://127.0.0.1:")


def test_a_plain_server_that_wants_a_key_gets_its_own(patient: Patient, tmp_path: Path) -> None:
    home, file = patient.citadel.home, tmp_path / "key"
    with Fleet.start(models=["m"], api_key="of-web-key") as server:
        for name, key in (("web-key", "of-web-key"), ("web-wrong", "another")):
            file.write_text(key)
            file.chmod(0o600)
            words = (server.url, "--kind", "http", "--model", "m", "--api-key-file", str(file))
            added = manage(home, "server", "add", name, *words)
            assert added.returncode == 0, added.stderr
        with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
            connection.execute("UPDATE orchestration_server SET health_endpoint = '/v1/models' WHERE kind = 'http'")
        try:
            report = patient.examined()
        finally:
            for name in ("web-key", "web-wrong"):
                manage(home, "server", "remove", name)
    assert "web-key answers" in report.lines("ok", "servers")
    assert report.lines("broken", "servers") == [f"web-wrong: {server.url}/v1/models answers 401"]
    assert "of-web-key" not in report.text


def test_a_migration_that_is_not_applied(patient: Patient) -> None:
    name = ("orchestration", "0005_classes_and_events")
    with psycopg.connect(patient.citadel.database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM django_migrations WHERE app = %s AND name = %s", name)
        connection.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('audit', '9999_later', now())")
        try:
            report = patient.examined()
        finally:
            connection.execute("INSERT INTO django_migrations (app, name, applied) VALUES (%s, %s, now())", name)
            connection.execute("DELETE FROM django_migrations WHERE name = '9999_later'")
    assert report.code == 1
    assert report.lines("broken", "migrations") == [f"not applied: {'.'.join(name)}"]
    assert report.lines("warning", "migrations") == ["of another version: audit.9999_later"]


@contextmanager
def stopped(patient: Patient, name: str) -> Iterator[None]:
    """The process takes what comes and answers nothing."""
    pid = int((patient.citadel.home / "run" / f"{name}.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_redis_that_does_not_answer(patient: Patient) -> None:
    with stopped(patient, "redis"):
        report = patient.examined()
    assert report.code == 1
    assert report.lines("broken", "redis for state")[0].startswith("it does not answer: ")
    assert report.lines("warning", "clock") == ["not compared with Redis's, which is away"]
    assert report.lines("ok", "servers"), "the rest is looked at"
    assert report.lines("ok", "redis for the cache")


@pytest.mark.parametrize("address", ["postgresql://citadel:a-password@127.0.0.1:1/citadel", "host=/nowhere dbname=x"])
def test_a_database_that_is_away(patient: Patient, address: str) -> None:
    report = patient.examined(DATABASE_URL=address)
    assert report.code == 1
    [said] = report.lines("broken", "database")
    assert said.startswith("PostgreSQL does not answer: ")
    assert "a-password" not in report.text
    for subject in ("database connections", "migrations", "servers"):
        assert report.lines("warning", subject) == ["not checked: PostgreSQL is away"]
    assert report.lines("ok", "redis for state")


def test_one_that_does_not_run(tmp_path: Path) -> None:
    """A folder in which nothing ever ran: that is said once, and what can be looked at is."""
    done = manage(tmp_path / "home", "doctor")
    report = Report(done.returncode, done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert report.broken == ["processes"]
    assert report.lines("broken", "processes") == [f"Citadel is not running in {tmp_path / 'home'}"]
    subjects = {line[9:].partition(":")[0] for line in report.text.splitlines() if ":" in line and "→" not in line}
    assert subjects == {"configuration", "permissions", "disk", "processes"}
    assert "REDIS" not in report.text


def test_one_that_does_not_run_has_what_it_names_looked_at(patient: Patient, tmp_path: Path) -> None:
    """And what is wrong with its settings is told."""
    words = [f"DATABASE_URL={patient.citadel.database_url}", "CITADEL_SECURITY__SECRET_KEY=short"]
    done = run(tmp_path / "home", "env", *words, sys.executable, str(ROOT / "manage.py"), "doctor")
    report = Report(done.returncode, done.stdout)
    assert report.broken == ["configuration", "processes"]
    assert report.lines("ok", "database")
    assert report.lines("ok", "clock") == ["agrees with PostgreSQL's"]
    assert "set REDIS_URL too" in report.text
    assert "REDIS_CACHE_URL" not in report.text


def test_redis_with_the_wrong_policies(patient: Patient) -> None:
    cache_url = config.read({"CITADEL_HOME": str(patient.citadel.home)})[0].redis_cache_url or ""
    with redis.Redis.from_url(patient.citadel.redis_url) as state, redis.Redis.from_url(cache_url) as cache:
        before = cache.config_get("maxmemory-policy")["maxmemory-policy"]
        state.config_set("maxmemory-policy", "allkeys-lru")
        state.config_set("appendonly", "no")
        cache.config_set("maxmemory-policy", "noeviction")
        try:
            report = patient.examined()
        finally:
            state.config_set("maxmemory-policy", "noeviction")
            state.config_set("appendonly", "yes")
            cache.config_set("maxmemory-policy", before)
    assert report.lines("broken", "redis for state")[0].startswith("its maxmemory-policy is allkeys-lru")
    assert report.lines("warning", "redis for state")[0].startswith("it keeps no append-only file")
    assert report.lines("broken", "redis for the cache")[0].startswith("its maxmemory-policy is noeviction")
    assert report.code == 1


def test_files_of_settings_that_nobody_reads(patient: Patient) -> None:
    stray = patient.citadel.home / "config" / "global" / "settings.yaml"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("server: {port: 1}\n")
    try:
        assert patient.examined().lines("warning", "configuration") == [f"nobody reads {stray}"]
    finally:
        stray.unlink()


def test_secrets_that_others_can_read(patient: Patient) -> None:
    home = patient.citadel.home
    secret, first_run = home / "config/secrets/citadel.yaml", home / "first-run.json"
    for path in (secret, first_run):
        path.chmod(0o644)
    try:
        report = patient.examined()
    finally:
        for path in (secret, first_run):
            path.chmod(0o600)
    assert report.code == 1
    assert report.lines("broken", "permissions") == [
        f"others than its owner can read {path}" for path in (secret, first_run)
    ]
    assert f"chmod 600 {first_run}" in report.text
    assert "chmod 600" in report.lines("broken", "configuration")[0]
    assert report.lines("warning", "database") == ["not checked: the configuration can't be used"]


def test_a_setting_that_is_not_known(patient: Patient) -> None:
    report = patient.examined(CITADEL_SERVER__PROT="1")
    [said] = report.lines("broken", "configuration")
    assert "did you mean CITADEL_SERVER__PORT?" in said
    assert report.code == 1


def test_a_process_that_has_died(patient: Patient) -> None:
    beat = int((patient.citadel.home / "run" / "beat.pid").read_text())
    with stopped(patient, "supervisor"):
        os.kill(beat, signal.SIGKILL)
        report = patient.examined()
    assert report.lines("broken", "processes") == ["beat should run and does not"]
    assert "web-1" in report.lines("ok", "processes")[0]


def test_a_clock_that_was_set_ahead_kills_nobody(patient: Patient) -> None:
    """By today's date all files in the home are older than the processes that left them."""
    for file in (patient.citadel.home / "run").iterdir():
        if file.is_file():
            os.utime(file, (file.stat().st_mtime - 600,) * 2)
    report = patient.examined()
    assert report.lines("broken", "processes") == []
    assert "web-1" in report.lines("ok", "processes")[0]


def test_web_workers_that_do_not_answer(patient: Patient) -> None:
    report = patient.examined(CITADEL_SERVER__PORT=str(free_port()))
    assert report.lines("broken", "web")[0].startswith("nothing answers at http://127.0.0.1:")


@pytest.mark.parametrize(
    ("seconds", "level"),
    [(0.3, "ok"), (-1.9, "ok"), (3, "warning"), (-30, "warning"), (61, "broken"), (-600, "broken")],
)
def test_how_far_clocks_may_differ(seconds: float, level: str) -> None:
    finding = agree("Redis", seconds)
    assert finding.level == level
    assert level == "ok" or ("ahead" if seconds > 0 else "behind") in finding.what


@pytest.mark.parametrize(("free", "level"), [(10**11, "ok"), (10**9, "warning"), (10**8, "broken"), (0, "broken")])
def test_how_much_space_there_must_be(tmp_path: Path, free: int, level: str) -> None:
    assert space(tmp_path, free).level == level


@pytest.mark.parametrize(("given", "level"), [(100, "ok"), (50, "warning"), (27, "broken")])
def test_connections_must_suffice(tmp_path: Path, given: int, level: str) -> None:
    tree = Config(home=tmp_path, server=ServerSection(workers=2), pools=PoolsSection(database=5))
    assert fits(needed(tree), given).level == level
