"""People who operate some servers of the fleet alone."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.gateway.access.console.test_sessions import open_for
from tests.gateway.access.console.visitor import Visitor, account
from tests.instance import Instance

SERVERS = "/admin/orchestration/server/"


@pytest.fixture
def rows(guarded: Instance) -> Iterator[tuple[Any, Any]]:
    """Two servers that nobody calls."""
    from apps.orchestration.models import Server

    names = [f"row-{secrets.token_hex(4)}" for _ in range(2)]
    made = [Server.objects.create(server_id=name, hostname="127.0.0.1", port=9, kind="openai") for name in names]
    yield made[0], made[1]
    Server.objects.filter(server_id__in=names).delete()


@pytest.fixture
def as_(guarded: Instance, visitor: Visitor) -> Iterator[Any]:
    """Has somebody of a role in the console, assigned to these servers where any are named."""
    from apps.gateway.models import Assignment

    with ExitStack() as stack:

        def enter(role: str, *servers: str) -> Any:
            made = stack.enter_context(account(role))
            if servers:
                Assignment.objects.create(user=made, servers=list(servers))
            open_for(visitor, made)
            return made

        yield enter


def drain(visitor: Visitor, *rows: Any) -> str:
    """What the page says when these are to be drained."""
    chosen = {"action": "drain", "_selected_action": [str(row.pk) for row in rows]}
    visitor.send_form(SERVERS, **chosen)
    for row in rows:
        row.refresh_from_db()
    return visitor.get(SERVERS).text


def test_an_operator_acts_on_the_servers_that_he_is_assigned_to(
    visitor: Visitor, rows: tuple[Any, Any], as_: Any
) -> None:
    own, other = rows
    as_("operator", own.server_id)
    page = drain(visitor, own, other)
    assert (own.state, other.state) == ("draining", "active")
    assert f"You are not assigned to {other.server_id}: nothing was done there." in page
    as_("operator")
    assert "You are not assigned" not in drain(visitor, other)
    assert other.state == "draining"


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_he_takes_out_no_others(visitor: Visitor, rows: tuple[Any, Any], as_: Any, role: str) -> None:
    own, other = rows
    as_(role, own.server_id)
    deleted = [visitor.send_form(f"{SERVERS}{row.pk}/delete/", post="yes").status_code for row in (other, own)]
    assert deleted == [403, 302]
    chosen = {"action": "delete_selected", "_selected_action": str(other.pk), "post": "yes"}
    visitor.send_form(SERVERS, **chosen)
    other.refresh_from_db()


def test_an_administrator_changes_no_others(visitor: Visitor, rows: tuple[Any, Any], as_: Any) -> None:
    own, other = rows
    as_("admin", own.server_id)
    found = [visitor.send_form(f"{SERVERS}{row.pk}/change/", hostname="10.0.0.1").status_code for row in (own, other)]
    assert found == [200, 403]  # with what is missing in the form


def test_what_is_for_all_servers_is_not_for_who_operates_some(visitor: Visitor, as_: Any) -> None:
    pages = [f"{SERVERS}add/", "/admin/orchestration/subscription/add/"]
    as_("operator", "some")
    assert [visitor.get(page).status_code for page in (*pages, SERVERS)] == [403, 403, 200]
    as_("operator")
    assert [visitor.get(page).status_code for page in (*pages, SERVERS)] == [200, 200, 200]


def test_administrators_assign(visitor: Visitor, as_: Any) -> None:
    from apps.gateway.models import Assignment

    somebody = as_("operator")
    assert visitor.get("/admin/gateway/assignment/add/").status_code == 403
    as_("admin")
    told = {"user": str(somebody.pk), "servers": "a\r\n\r\n b "}
    assert visitor.send_form("/admin/gateway/assignment/add/", **told).status_code == 302
    assert Assignment.objects.get(user=somebody).servers == ["a", "b"]
    again = visitor.send_form("/admin/gateway/assignment/add/", user=str(somebody.pk), servers=" ")
    assert again.status_code == 200  # one without servers would be one of all
