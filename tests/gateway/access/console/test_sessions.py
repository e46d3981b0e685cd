"""How sessions end, and what their holders may see: by the database, at once, with four workers."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from django.test import Client as Browser

from apps.gateway.access.console.roles import CONSOLE_ROLES, in_django
from apps.gateway.access.console.session import PROVEN, PROVIDER, SEEN, SIGNED_IN
from tests.gateway.access.console.visitor import LOGIN, Visitor, account
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import Socket, refused, watching

WATCHERS = 8
"""Of one session, so that several workers have some."""


def session_of(visitor: Visitor) -> Any:
    from apps.gateway.access.console.store import SessionStore

    return SessionStore(visitor.cookies["sessionid"])


def open_for(visitor: Visitor, user: Any, *, strong: bool = True) -> None:
    """A session of theirs, as if they came by a provider."""
    browser = Browser()
    browser.force_login(user)
    session = browser.session
    if strong:
        session[PROVEN] = [str(user.pk), PROVIDER]
        session.save()
    visitor.cookies.set("sessionid", browser.cookies["sessionid"].value, domain="127.0.0.1")


@pytest.fixture
def auditor(guarded: Instance) -> Iterator[Any]:
    with account("auditor") as made:
        yield made


@pytest.fixture
async def watchers(guarded: Instance, visitor: Visitor, auditor: Any) -> AsyncIterator[list[Socket]]:
    open_for(visitor, auditor)
    headers = {"cookie": visitor.cookie, "origin": guarded.url}
    async with AsyncExitStack() as stack:
        opening = (stack.enter_async_context(watching(guarded, headers=headers)) for _ in range(WATCHERS))
        yield list(await asyncio.gather(*opening))


def demote(user: Any) -> None:
    user.is_staff = False
    user.save()


def deactivate(user: Any) -> None:
    user.is_active = False
    user.save()


def take_the_role(user: Any) -> None:
    user.groups.clear()


def change_the_password(user: Any) -> None:
    user.set_password("another one that is long")
    user.save()


@pytest.mark.parametrize("change", [demote, deactivate, take_the_role, change_the_password])
async def test_who_may_no_more_is_out_within_five_seconds(
    guarded: Instance, visitor: Visitor, auditor: Any, watchers: list[Socket], change: Callable[[Any], None]
) -> None:
    assert visitor.is_in()
    before = time.monotonic()
    change(auditor)
    assert await asyncio.gather(*(one.closed() for one in watchers)) == [1008] * WATCHERS
    assert time.monotonic() - before < 5 + HELD_UP
    assert (await refused(guarded, {"cookie": visitor.cookie, "origin": guarded.url}))[0] in {401, 403}
    assert visitor.get("/admin/").headers["location"].startswith(LOGIN)
    assert not visitor.is_in()


@pytest.mark.parametrize("was", ["owner", "member"])
def test_who_may_less_in_a_team_signs_in_anew_and_who_may_more_does_not(
    guarded: Instance, visitor: Visitor, auditor: Any, was: str
) -> None:
    from django.contrib.auth.models import Group

    from apps.gateway.models import Membership, Team

    team = Team.objects.create(slug=f"team-{secrets.token_hex(4)}")
    held = Membership.objects.create(user=auditor, team=team, role=was)
    open_for(visitor, auditor)
    assert visitor.is_in()
    Membership.objects.filter(pk=held.pk).update(role="owner")
    assert visitor.is_in()
    auditor.groups.add(Group.objects.get(name="operator"))
    assert visitor.is_in()
    Membership.objects.filter(pk=held.pk).update(role="viewer")
    assert not visitor.is_in()
    open_for(visitor, auditor)
    assert visitor.is_in()
    held.delete()
    assert not visitor.is_in()
    open_for(visitor, auditor)
    assert visitor.is_in()
    auditor.groups.remove(Group.objects.get(name="operator"))
    assert not visitor.is_in()


@pytest.mark.parametrize("query", ["?name=%00", "?q=%00", "?role__exact=a%00b", "?%00=1", "?key_id__startswith=%00"])
def test_a_nul_in_a_filter_is_no_fault_of_ours(guarded: Instance, visitor: Visitor, auditor: Any, query: str) -> None:
    open_for(visitor, auditor)
    assert visitor.get(f"/admin/gateway/key/{query}").status_code == 400


async def test_who_signs_out_watches_no_more(visitor: Visitor, watchers: list[Socket]) -> None:
    before = time.monotonic()
    assert visitor.send_form("/admin/logout/").headers["location"] == LOGIN
    assert await asyncio.gather(*(one.closed() for one in watchers)) == [1008] * WATCHERS
    assert time.monotonic() - before < 5 + HELD_UP


async def test_a_session_ends_however_much_it_is_used(
    guarded: Instance, visitor: Visitor, watchers: list[Socket]
) -> None:
    session = session_of(visitor)
    session[SIGNED_IN] = time.time() - 43_200 - 1
    session.save()
    assert await asyncio.gather(*(one.closed() for one in watchers)) == [1008] * WATCHERS
    assert visitor.get("/admin/").headers["location"].startswith(LOGIN)


def test_a_session_that_is_used_goes_on_and_is_not_written_each_time(visitor: Visitor, auditor: Any) -> None:
    open_for(visitor, auditor)
    ends = []
    for seen in (time.time() - 3000, None, None):
        if seen:
            session = session_of(visitor)
            session[SEEN] = seen
            session.save()
        assert visitor.is_in()
        ends.append(session_of(visitor)[SEEN])
    assert ends[0] > time.time() - 60
    assert len(set(ends)) == 1


async def test_a_session_that_has_shown_a_password_alone_watches_nothing(
    guarded: Instance, visitor: Visitor, auditor: Any
) -> None:
    open_for(visitor, auditor, strong=False)
    assert await refused(guarded, {"cookie": visitor.cookie, "origin": guarded.url}) == (401, "invalid_api_key")


@pytest.mark.parametrize("role", CONSOLE_ROLES)
def test_a_role_sees_in_the_console_what_the_table_says(guarded: Instance, visitor: Visitor, role: str) -> None:
    from django.contrib import admin
    from django.urls import resolve

    from citadel.rows import ReadOnly

    assert resolve("/admin/")  # whose module arranges the pages
    with account(role) as made:
        open_for(visitor, made)
        may = made.get_all_permissions()
        assert role == "admin" or may == in_django(role)
        for model, page in admin.site._registry.items():
            app, model_name = model._meta.app_label, model._meta.model_name
            for verb, path in (("view", ""), ("add", "add/")):
                answer = visitor.get(f"/admin/{app}/{model_name}/{path}")
                allowed = f"{app}.{verb}_{model_name}" in may or (
                    verb == "view" and f"{app}.change_{model_name}" in may
                )
                readable = verb == "view" or not isinstance(page, ReadOnly)
                assert (answer.status_code == 200) == (allowed and readable), (model_name, verb)


def test_an_operator_acts_on_servers_and_does_not_change_them(guarded: Instance, visitor: Visitor) -> None:
    from apps.orchestration.models import Server

    row = Server.objects.create(server_id="operated", hostname="127.0.0.1", port=9, kind="openai")
    chosen = {"action": "drain", "_selected_action": str(row.pk)}
    for role, state in (("auditor", "active"), ("operator", "draining")):
        with account(role) as made:
            open_for(visitor, made)
            visitor.send_form("/admin/orchestration/server/", **chosen)
            row.refresh_from_db()
            assert row.state == state
            changed = visitor.send_form(f"/admin/orchestration/server/{row.pk}/change/", hostname="10.0.0.1")
            assert changed.status_code == 403
    row.delete()


def test_groups_of_the_roles_are_what_the_table_says_after_each_migrate(guarded: Instance) -> None:
    from django.contrib.auth.models import Group, Permission
    from django.core.management import call_command

    group = Group.objects.get(name="developer")
    group.permissions.add(Permission.objects.get(codename="change_key"))
    call_command("migrate", verbosity=0)
    assert not group.permissions.exists()
    assert Group.objects.get(name="admin").permissions.count() == Permission.objects.count()
