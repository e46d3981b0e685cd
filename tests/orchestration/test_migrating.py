"""Migrations of the registry's rows, there and back, on a database of their own."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection

ROWS = {"found": (False, False), "told": (True, True), "said": (True, False)}
"""Models, and whether they were named, and by a registration alone."""
ADD_SERVER = """
INSERT INTO orchestration_server (server_id, scheme, hostname, port, base_path, kind, role, capabilities, services,
    state, weight, max_concurrent, api_key, health_endpoint, models_endpoint, metrics_endpoint, registered_by,
    registered)
VALUES ('one', 'http', 'h', 80, '', '', '', '[]', '[]', 'active', 1, 0, '', '', '', '', '', now()) RETURNING id
"""
ADD_MODEL = """
INSERT INTO orchestration_servedmodel (server_id, name, owned_by, named, registered)
VALUES (%s, %s, '', %s, %s)
"""
WAITS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE NOT granted AND datname = %s"
)


def migrate(name: str) -> None:
    try:
        call_command("migrate", "orchestration", name, verbosity=0)
    finally:
        connection.close()


@pytest.fixture
def before(migrated: str) -> Iterator[psycopg.Connection]:
    """A connection to a database in which nobody's word is known yet."""
    migrate("0011")
    with psycopg.connect(migrated) as given:
        yield given
        given.execute("TRUNCATE orchestration_server CASCADE")


def test_whose_word_a_model_is_survives_the_way_there_and_back(before: psycopg.Connection) -> None:
    [number] = before.execute(ADD_SERVER).fetchone() or ()
    for name, words in ROWS.items():
        before.execute(ADD_MODEL, (number, name, *words))
    before.commit()
    migrate("0012")
    told = dict(before.execute("SELECT name, named_by FROM orchestration_servedmodel").fetchall())
    before.commit()
    assert told == {"found": "", "told": "registration", "said": "operator"}
    migrate("0011")
    back = before.execute("SELECT name, named, registered FROM orchestration_servedmodel").fetchall()
    assert {name: tuple(words) for name, *words in back} == ROWS


def test_who_registers_meanwhile_is_waited_for(before: psycopg.Connection) -> None:
    """A registration has the epoch's row before it comes to its models."""
    [number] = before.execute(ADD_SERVER).fetchone() or ()
    with ThreadPoolExecutor(1) as thread:
        migrating = thread.submit(migrate, "0012")
        begun = time.monotonic()
        while before.execute(WAITS, (before.info.dbname,)).fetchone() == (0,) and time.monotonic() - begun < 10:
            time.sleep(0.02)
        before.execute(ADD_MODEL, (number, "said", True, False))
        before.commit()
        migrating.result(20)
    assert before.execute("SELECT name, named_by FROM orchestration_servedmodel").fetchall() == [("said", "operator")]
