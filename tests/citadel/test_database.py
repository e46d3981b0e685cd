"""The address of the database: Django's connections and the workers' go to the same one, by libpq's own reading; and
the threads that use Django's.
"""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from citadel.config import read
from citadel.database import NOTICES_SILENCE, THREADS, address, in_thread
from citadel.sections import Config, ConfigError
from citadel.settings import database
from tests.held_up import HELD_UP
from tests.instance import ROOT


def django(url: str) -> dict[str, str]:
    """What Django's connections are opened with."""
    from django.db.backends.postgresql.base import DatabaseWrapper

    settings = {"TIME_ZONE": None, **database(url)}
    parameters = DatabaseWrapper(settings, "default").get_connection_params()
    own = {"client_encoding", "context", "cursor_factory", "prepare_threshold", "application_name", "connect_timeout"}
    own |= NOTICES_SILENCE.keys()
    return {name: str(value) for name, value in parameters.items() if name not in own}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:pass@host:5433/name",
        "postgres://user:p%40s%2Fs%3A%25%20%2B+w@host/name",
        "postgresql://host/name?user=me&password=a+b%20c",
        "postgresql://user:p?a#s:s@host/name",
        "postgresql://user@/name?host=/run/postgresql&port=5433",
        "postgresql://user:pass@%2Frun%2Fpostgresql/name",
        "postgresql://user@[::1]:5433/name?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://user@one:1,two:2/name?target_session_attrs=read-write",
        "host=host dbname=name user=me password='a b'",
        "postgresql://user@host/name?options=-c%20search_path%3Dciti",
    ],
)
def test_django_is_given_what_libpq_reads(url: str) -> None:
    assert django(url) == conninfo_to_dict(url)


def test_without_a_name_the_database_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert django("postgresql://me@host")["dbname"] == "me"
    monkeypatch.setenv("PGUSER", "someone")
    assert django("postgresql://host")["dbname"] == "someone"
    monkeypatch.setenv("PGDATABASE", "theirs")
    assert django("postgresql://me@host")["dbname"] == "theirs"


def test_a_services_file_says_its_database_itself() -> None:
    assert django("postgresql://?service=theirs") == {"service": "theirs"}


def test_the_operators_own_options_come_before_ours() -> None:
    assert database("postgresql://host/name?connect_timeout=9")["OPTIONS"] == {
        "application_name": "citadel",
        "connect_timeout": "9",
        **NOTICES_SILENCE,
    }


@pytest.mark.parametrize(
    "url",
    [
        "localhost/hidden",
        "mysql://user:hidden@host/name",
        "postgresql://user:hid/den@host/name",
        "postgresql://user:1/den@host/name",
        "postgresql://user:hidden%zz@host/name",
        "postgresql://user:hidden@[host/name",
        "postgresql://user@host/name?hidden=1",
    ],
)
def test_a_mistake_is_told_without_a_secret(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"CITADEL_HOME": str(tmp_path), "DATABASE_URL": url})
    message = str(caught.value)
    assert message.startswith("environment DATABASE_URL: database_url: ")
    assert "postgresql://user:password@host:port/name" in message
    assert "hid" not in message
    assert "den" not in message


def test_no_address_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        address(Config(home=tmp_path))


async def test_so_many_threads_work_and_all_others_wait() -> None:
    let_go, names = threading.Event(), set()

    def work() -> None:
        names.add(threading.current_thread().name)
        let_go.wait()

    asked = [asyncio.create_task(in_thread(work)) for _ in range(3 * THREADS)]
    await asyncio.sleep(0.3)
    try:
        assert len(names) == THREADS
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 1 + HELD_UP)  # the usual ones are free
    finally:
        let_go.set()
        await asyncio.gather(*asked)


ENDING = """
import asyncio, os, time
from django.conf import settings
settings.configure()
from citadel.database import THREADS, in_thread

def work(number):
    time.sleep(0.5)
    os.write(1, b"%d\\n" % number)

async def main():
    tasks = [asyncio.create_task(in_thread(work, number)) for number in range(3 * THREADS)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

asyncio.run(main())
"""


def test_a_process_ends_when_what_runs_there_has_ended() -> None:
    """What still waited does not begin."""
    command = [sys.executable, "-c", ENDING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(map(int, done.stdout.split())) == list(range(THREADS))
