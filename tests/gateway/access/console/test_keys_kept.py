"""Keys that are changed in the console while others work on them, counted for their team, and shown a few at a time."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from apps.gateway.access.keys.granting import MOST
from apps.gateway.models import Key, Team
from tests.gateway.access.console.test_sessions import open_for
from tests.gateway.access.console.test_teams import FORM, Belongings, belong, belongings, other, own, page
from tests.gateway.access.console.visitor import Visitor, account
from tests.instance import Instance

__all__ = ["belongings", "other", "own"]

ADD = "/admin/gateway/key/add/"


@pytest.fixture(params=["admin", "owner"])
def role(request: pytest.FixtureRequest, visitor: Visitor, own: Belongings) -> Iterator[str]:
    """Of somebody who manages the own team's keys, and whose session the visitor has."""
    with account("developer" if request.param == "owner" else request.param) as person:
        if request.param == "owner":
            belong(person, own.team, "owner")
        open_for(visitor, person)
        yield request.param


def fill(team: Team, keys: int) -> None:
    """Gives a team so many keys in force."""
    missing = keys - team.keys.filter(revoked=None).count()
    Key.objects.bulk_create(
        Key(team=team, name="x", key_id=secrets.token_hex(5), digest=secrets.token_bytes(32)) for _ in range(missing)
    )


def await_waiting(guarded: Instance, connection: psycopg.Connection[Any]) -> None:
    """Until somebody waits for what a connection holds; asked by another, for one transaction sees no news of that."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    deadline = time.monotonic() + 20
    with psycopg.connect(guarded.database_url, autocommit=True) as looking:
        while looking.execute(waiting, (connection.info.backend_pid,)).fetchone() == (0,):
            assert time.monotonic() < deadline, "nobody has waited"
            time.sleep(0.02)


def test_a_change_undoes_neither_a_revocation_nor_a_rotation(
    guarded: Instance, visitor: Visitor, own: Belongings, role: str
) -> None:
    fields = {**FORM, "team": own.team.pk, "role": "developer"}
    rotated = secrets.token_bytes(32)
    with ThreadPoolExecutor(1) as thread, psycopg.connect(guarded.database_url) as meanwhile:
        meanwhile.execute(
            "UPDATE gateway_key SET revoked = now(), former_digest = digest, digest = %s WHERE id = %s",
            (rotated, own.key.pk),
        )
        visitor.get(page("key"))
        changing = thread.submit(visitor.send_form, page("key", own.key), **fields)
        await_waiting(guarded, meanwhile)
        meanwhile.commit()
        answer = changing.result(20)
    assert answer.status_code == (302 if role == "admin" else 403)
    kept = Key.objects.get(pk=own.key.pk)
    assert kept.revoked
    assert (bytes(kept.digest), bytes(kept.former_digest or b"")) == (rotated, bytes(own.key.digest))
    assert kept.name == ("new" if role == "admin" else own.key.name)


def test_a_team_has_no_more_keys_than_it_may(visitor: Visitor, own: Belongings, other: Belongings, role: str) -> None:
    fill(own.team, MOST)
    fields = {**FORM, "team": own.team.pk, "role": "developer"}
    refused = visitor.send_form(ADD, **fields)
    assert (refused.status_code, f"has {MOST} keys" in refused.text) == (200, True)
    if role == "admin":
        moved = visitor.send_form(page("key", other.key), **fields)
        assert (moved.status_code, f"has {MOST} keys" in moved.text) == (200, True)
    assert own.team.keys.filter(revoked=None).count() == MOST
    assert visitor.send_form(page("key", own.key), **fields).status_code == 302
    Key.objects.filter(pk=own.key.pk).update(revoked="2026-01-01T00:00:00Z")
    assert visitor.send_form(ADD, **fields).status_code == 302


def test_nor_where_one_comes_meanwhile(guarded: Instance, visitor: Visitor, own: Belongings, role: str) -> None:
    fill(own.team, MOST)
    Key.objects.filter(pk=own.key.pk).update(revoked="2026-01-01T00:00:00Z")
    with ThreadPoolExecutor(1) as thread, psycopg.connect(guarded.database_url) as meanwhile:
        meanwhile.execute("SELECT 1 FROM gateway_team WHERE id = %s FOR UPDATE", (own.team.pk,))
        meanwhile.execute("UPDATE gateway_key SET revoked = NULL WHERE id = %s", (own.key.pk,))
        visitor.get(page("key"))
        adding = thread.submit(visitor.send_form, ADD, **FORM, team=own.team.pk, role="developer")
        await_waiting(guarded, meanwhile)
        meanwhile.commit()
        assert f"has {MOST} keys" in adding.result(20).text
    assert own.team.keys.filter(revoked=None).count() == MOST


def test_no_more_keys_are_rotated_at_once_than_are_shown_without_being_kept(
    visitor: Visitor, own: Belongings, role: str
) -> None:
    fill(own.team, 8)
    Key.objects.filter(team=own.team).update(name="名" * 128, role="developer", max_priority="high")
    Key.objects.filter(team=own.team).update(requests_per_minute=None, concurrent=None)
    chosen = list(own.team.keys.values_list("pk", flat=True))
    before = {bytes(digest) for digest in own.team.keys.values_list("digest", flat=True)}
    visitor.send_form(page("key"), action="rotate", _selected_action=chosen[:6])
    said = visitor.get(page("key")).text
    assert ("at most 5" in said, "ctd_" in said) == (True, False)
    assert {bytes(digest) for digest in own.team.keys.values_list("digest", flat=True)} == before
    visitor.send_form(page("key"), action="rotate", _selected_action=chosen[:5])
    assert "ctd_" not in kept_in_session(visitor)
    said = visitor.get(page("key")).text
    assert len([key for key in own.team.keys.all()[:8] if f"ctd_{key.key_id}_" in said]) == 5


def kept_in_session(visitor: Visitor) -> str:
    """What the database has of the visitor's session, as text."""
    from apps.gateway.access.console.store import SessionStore

    return repr(SessionStore(visitor.cookies["sessionid"]).load())
