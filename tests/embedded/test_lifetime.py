"""Start, stop, sudden deaths and what the next start makes of them, on the real PostgreSQL and Redis."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from citadel import config, presence
from citadel.config import ROOT
from tests.command import manage
from tests.embedded.conftest import Installation, eventually

Make = Callable[..., Installation]
STORES = ("postgres", "redis", "redis-cache")
EVERYONE = (*STORES, "web-1", "supervisor")


def test_starts_answers_keeps_its_data_and_leaves_nothing_behind(installation: Installation) -> None:
    installation.start()
    addresses = installation.addresses()
    assert installation.page() == str(installation.pid("web-1"))
    with psycopg.connect(addresses["DATABASE_URL"]) as database:
        database.execute("CREATE TABLE kept (value int)")
        database.execute("INSERT INTO kept VALUES (42)")
        assert database.execute(
            "SELECT current_user, usesuper FROM pg_user WHERE usename = current_user"
        ).fetchone() == (
            "citadel",
            False,
        )
    state, cache = (redis.Redis.from_url(addresses[name]) for name in ("REDIS_URL", "REDIS_CACHE_URL"))
    assert state.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert cache.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"
    assert cache.config_get("maxmemory")["maxmemory"] == str(512 * 1024 * 1024)
    assert state.set("kept", "yes")
    assert cache.set("kept", "no")

    assert installation.stop(signal.SIGINT) == 0
    assert installation.living() == []
    assert list((installation.home / "run").glob("*.pid")) == []
    assert not (installation.home / "run" / "services.json").exists()

    installation.start()
    addresses = installation.addresses()
    with psycopg.connect(addresses["DATABASE_URL"]) as database:
        assert database.execute("SELECT value FROM kept").fetchone() == (42,)
    assert redis.Redis.from_url(addresses["REDIS_URL"]).get("kept") == b"yes"
    assert redis.Redis.from_url(addresses["REDIS_CACHE_URL"]).get("kept") is None
    assert installation.stop(signal.SIGTERM) == 0
    assert installation.living() == []


def test_nobody_else_gets_in(installation: Installation) -> None:
    installation.start()
    for path in (
        installation.home,
        installation.home / "run",
        installation.home / "logs",
        installation.home / "run" / "pg",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    secrets = [installation.home / "run" / "services.json", installation.home / "postgres" / "password"]
    sockets = [*(installation.home / "run").glob("*.sock"), installation.home / "run" / "pg" / ".s.PGSQL.5432"]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(sockets) == 3
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    url = installation.addresses()["DATABASE_URL"]
    for wrong in (url.replace("//citadel:", "//citadel:x"), url.replace("//citadel:", "//postgres:")):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)
    ours = {process.pid for process in installation.living()}
    listening = {
        connection.laddr[1]
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in ours
    }
    assert listening == {installation.port}


def test_a_killed_child_starts_again(installation: Installation) -> None:
    installation.start()
    for name in ("web-1", "redis", "postgres"):
        before = installation.pid(name)
        os.kill(before, signal.SIGKILL)
        eventually(lambda name=name: f"{name} answers again" in installation.said())
        assert installation.pid(name) != before
        assert f"{name} was ended by SIGKILL" in installation.said()
    assert installation.page()
    with psycopg.connect(installation.addresses()["DATABASE_URL"]) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
    assert installation.stop() == 0


def test_the_start_after_a_killed_supervisor(installation: Installation) -> None:
    installation.start()
    assert installation.process
    installation.process.kill()
    installation.process.wait()
    if sys.platform == "linux":
        eventually(lambda: installation.living() == [], 10)
    installation.start()
    assert installation.page() == str(installation.pid("web-1"))
    assert installation.stop() == 0


@pytest.mark.parametrize(
    "words", ["server list", "server refresh x", "key create --team t --name n", "fleet export", "changepassword x"]
)
def test_after_a_killed_supervisor_commands_say_that_nothing_runs(killed: Path, words: str) -> None:
    """The addresses that it told are still there, and lead nowhere."""
    done = manage(killed, *words.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"No Citadel runs in {killed} and DATABASE_URL is not set. Start it with bin/run")
    assert done.stderr.count("\n") == 1


def test_after_a_killed_supervisor_the_doctor_says_so_once(killed: Path) -> None:
    done = manage(killed, "doctor")
    broken = [line for line in done.stdout.splitlines() if line.startswith("broken")]
    assert broken == [f"broken   processes: Citadel is not running in {killed}"]
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture(scope="module")
def killed(used_home: Path) -> Iterator[Path]:
    """The home of a Citadel that was killed with all its processes."""
    one = Installation(used_home)
    one.start()
    one.kill_all()
    config.make_secret(one.home)
    assert (one.home / "run" / "services.json").exists()
    yield one.home


def test_the_start_after_everything_was_killed_at_once(installation: Installation) -> None:
    """As after a power cut: stale process ids, sockets, postmaster.pid and addresses."""
    installation.start()
    installation.kill_all()
    assert (installation.home / "postgres" / "data" / "postmaster.pid").exists()
    assert (installation.home / "run" / "services.json").exists()
    installation.start()
    assert installation.page()
    assert installation.stop() == 0


def test_a_recycled_process_id_is_left_alone(installation: Installation) -> None:
    """Every file of the last start names a process that lives, runs as the same user and is none of ours."""
    installation.start()
    installation.kill_all()
    with stranger() as innocent:
        for name in EVERYONE:
            (installation.home / "run" / f"{name}.pid").write_text(f"{innocent.pid}\n")
        register = installation.home / "run" / "processes.json"
        register.write_text(
            json.dumps({name: [innocent.pid, born] for name, (_, born) in json.loads(register.read_text()).items()})
        )
        for path in (
            installation.home / "postgres" / "data" / "postmaster.pid",
            installation.home / "run" / "pg" / ".s.PGSQL.5432.lock",
        ):
            lines = path.read_text().splitlines()
            path.write_text("\n".join([str(innocent.pid), *lines[1:]]) + "\n")
        installation.start()
        assert innocent.poll() is None
        assert installation.pid("postgres") != innocent.pid
        assert installation.stop() == 0
        assert innocent.poll() is None


def test_leftovers_of_the_last_start_are_ended(installation: Installation) -> None:
    """Where the kernel does not end children with their parent, the next start does: here one that holds the port."""
    (installation.home / "run").mkdir(exist_ok=True)
    page = Path(__file__).with_name("page.py")
    with socket.create_server(("127.0.0.1", installation.port)) as public:
        left_behind = subprocess.Popen([sys.executable, page, str(public.fileno())], pass_fds=[public.fileno()])
    entry = {"web-1": [left_behind.pid, presence.birth(left_behind.pid)]}
    (installation.home / "run" / "processes.json").write_text(json.dumps(entry))
    installation.start()
    assert left_behind.wait(5) == -signal.SIGTERM
    assert installation.page() == str(installation.pid("web-1"))
    assert installation.stop() == 0


def test_two_homes_side_by_side(installation: Installation, fresh: Make) -> None:
    one, other = installation, fresh("other höme, 100% 'öwn'")
    one.start()
    other.start()
    for home, value in ((one, b"1"), (other, b"2")):
        redis.Redis.from_url(home.addresses()["REDIS_URL"]).set("whose", value)
    assert redis.Redis.from_url(one.addresses()["REDIS_URL"]).get("whose") == b"1"
    assert one.page() != other.page()
    assert one.stop() == 0
    assert other.page()
    assert other.stop() == 0


def test_a_second_start_in_the_same_home_says_that_it_runs(installation: Installation) -> None:
    installation.start()
    second = Installation(installation.home)
    process = second.launch()
    said = second.output()
    assert process.returncode == 1
    assert f"runs already in {installation.home} (process {installation.pid('supervisor')})" in said
    assert installation.page()
    assert installation.stop() == 0


def test_a_taken_port_is_named_with_its_owner(installation: Installation, fresh: Make) -> None:
    installation.start()
    second = fresh()
    second.port = installation.port
    process = second.launch()
    said = second.output()
    assert process.returncode == 1
    assert f"Port {installation.port} on 127.0.0.1 is taken by process " in said
    assert f"CITADEL_SERVER__PORT={installation.port + 1}" in said
    assert second.living() == []


def test_a_home_too_deep_for_sockets(fresh: Make) -> None:
    installation = fresh("deep/" + "folder with a long name/" * 6 + 'and "quotes", commas')
    installation.start()
    addresses = installation.addresses()
    assert str(installation.home) not in addresses["REDIS_URL"]
    with psycopg.connect(addresses["DATABASE_URL"]) as database:
        place = Path(database.info.host)
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    # A cleaner of temporary files takes it away while all runs.
    shutil.rmtree(place.parent)
    eventually(lambda: installation.said().count("answers again") >= 3)
    with psycopg.connect(addresses["DATABASE_URL"]) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
    assert redis.Redis.from_url(addresses["REDIS_URL"]).ping()
    assert installation.stop() == 0
    assert installation.living() == []
    assert not place.parent.exists()


def test_a_second_ctrl_c_does_not_wait_for_running_answers(installation: Installation) -> None:
    installation.start()
    installation.page("stubborn")
    database = installation.addresses()["DATABASE_URL"]
    assert installation.process
    installation.process.send_signal(signal.SIGINT)
    told = "Stopping; running answers may end first, within 60 s. Ctrl-C once more stops at once."
    eventually(lambda: installation.said().splitlines()[-1].endswith(told))
    with pytest.raises(subprocess.TimeoutExpired):
        installation.process.wait(1)
    with psycopg.connect(database) as still_there:
        assert still_there.execute("SELECT 1").fetchone() == (1,)
    assert installation.stop() == 0
    assert installation.living() == []


def test_while_it_stops_everyone_is_told_so(installation: Installation) -> None:
    installation.settings["CITADEL_TIMEOUTS__DRAIN"] = "50"
    installation.start()
    installation.page("stubborn")
    assert installation.process
    pid = installation.pid("supervisor")
    installation.process.send_signal(signal.SIGINT)
    eventually(lambda: not (installation.home / "run" / "services.json").exists())
    sentence = f"it is stopping (process {pid}), up to 50 s for running answers; kill -INT {pid} stops it at once"
    config.make_secret(installation.home)
    examined = manage(installation.home, "doctor")
    listed = manage(installation.home, "server", "list")
    again = Installation(installation.home).launch()
    assert sentence in again.communicate(timeout=20)[0]
    assert sentence in listed.stderr
    assert sentence in examined.stdout
    assert "bin/run with" not in examined.stdout
    assert "start it with" not in listed.stderr + examined.stdout
    assert (again.returncode, listed.returncode, listed.stdout, examined.returncode) == (1, 1, "", 0)
    assert installation.stop() == 0
    assert presence.stopping(installation.home) is None


def test_ctrl_c_during_the_start_leaves_nothing(fresh: Make) -> None:
    installation = fresh()
    installation.launch()
    eventually((installation.home / "postgres.new").exists)
    assert installation.stop() == 0
    assert installation.living() == []
    installation.start()
    assert installation.page()
    assert installation.stop() == 0


def test_ctrl_c_before_anything_has_started_says_nothing(fresh: Make) -> None:
    """While Python still loads what is needed, most of all; and in the time until the end where it was not."""
    for tenths in range(7):
        installation = fresh(f"home-{tenths}")
        installation.module = "citadel.embedded"
        process = installation.launch()
        wait_for_first_line(process.pid)
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in installation.output()
        assert process.returncode in (0, -signal.SIGINT)
        assert installation.living() == []


def wait_for_first_line(pid: int) -> None:
    """Python itself, which catches SIGINT, has begun, and then the first line, which lets go of it."""
    until, begun = time.monotonic() + 2, False
    while time.monotonic() < until:
        caught = catches(pid, signal.SIGINT)
        if begun and not caught:
            return
        begun = begun or caught
        time.sleep(0.001)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal (proc(5), `SigCgt`)."""
    [mask] = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_as_an_ordinary_user(fresh: Make, folder: Path) -> None:
    try:
        user = pwd.getpwnam("nobody").pw_name
    except KeyError:
        pytest.skip("there is no user called nobody")
    python = python_for(user)
    if not python:
        pytest.skip("this repository or its Python lies where other users can't read")
    folder.chmod(0o711)
    installation = fresh(user=user)
    installation.python = python
    installation.home.mkdir()
    shutil.chown(installation.home, user)
    installation.start()
    assert installation.page()
    assert {process.username() for process in installation.living()} == {user}
    assert installation.stop() == 0
    assert installation.living() == []


def python_for(user: str) -> str | None:
    """A Python of our version that this user can run with our packages: ours, or else the machine's own."""
    same = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{same}", f"/usr/local/bin/{same}"):
        command = [python, "-c", "import psycopg, psutil, redis, citadel.config"]
        environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
        try:
            subprocess.run(command, cwd=ROOT, env=environment, user=user, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    return None


@contextmanager
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has nothing to do with Citadel, of the user that PostgreSQL runs as."""
    user = "nobody" if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as process:
        try:
            yield process
        finally:
            process.kill()
