"""Where somebody is signed in: seen and ended by themselves, ended by administrators, and with a change of factors."""

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from apps.gateway.access.console.session import SHOWN
from apps.gateway.access.console.store import end_all
from tests.gateway.access.console.provider import Provider
from tests.gateway.access.console.test_passwords import change
from tests.gateway.access.console.test_providers import come, person
from tests.gateway.access.console.test_sessions import WATCHERS, auditor, open_for, session_of, watchers
from tests.gateway.access.console.visitor import CODE, FACTORS, LOGIN, PASSWORD, Visitor, account, code, error
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import Socket
from tests.security_lines import told

__all__ = ["auditor", "watchers"]

PAGE = "/admin/sessions/"
MARK = re.compile(r'name="session" value="([0-9a-f]{20})"')


@pytest.fixture
def inside(visitor: Visitor, name: str) -> Visitor:
    """Signed in with both factors; the app's secret is in `secret`."""
    visitor.sign_in(name)
    visitor.secret, _ = visitor.set_up()  # type: ignore[attr-defined]
    return visitor


@pytest.fixture
def other(guarded: Instance, inside: Visitor, name: str) -> Iterator[Visitor]:
    """The same person in another browser."""
    with Visitor(guarded) as browser:
        browser.headers["user-agent"] = "another <b>browser</b>"
        browser.sign_in(name)
        browser.send_form(CODE, code=code(inside.secret, 1))  # type: ignore[attr-defined]
        assert browser.is_in()
        yield browser


def grow_old(visitor: Visitor) -> None:
    """Its person has shown who they are more than five minutes ago."""
    session = session_of(visitor)
    session[SHOWN] = time.time() - 301
    session.save()


def test_people_see_theirs_and_end_one(inside: Visitor, other: Visitor, guarded: Instance, name: str) -> None:
    shown = inside.get(PAGE).text
    assert "another &lt;b&gt;browser" in shown
    assert other.address in shown
    assert shown.count("this one") == 1
    for visitor in (inside, other):
        assert visitor.cookies["sessionid"] not in shown, "who reads it there could use it"
    [mark] = MARK.findall(shown)
    assert inside.send_form(PAGE, session=mark).headers["location"] == PAGE
    assert other.get("/admin/").headers["location"].startswith(LOGIN)
    assert inside.is_in()
    assert MARK.findall(inside.get(PAGE).text) == []
    assert told(guarded, event="session_ended", account=name, address=inside.address)


def test_nobody_sees_or_ends_those_of_others(inside: Visitor, other: Visitor, guarded: Instance) -> None:
    [mark] = MARK.findall(inside.get(PAGE).text)
    with account("admin") as somebody, Visitor(guarded) as stranger:
        open_for(stranger, somebody)
        session = session_of(stranger)
        session[SHOWN] = time.time()
        session.save()
        assert other.address not in stranger.get(PAGE).text
        for chosen in (mark, "others", "", "%", other.cookies["sessionid"]):
            stranger.send_form(PAGE, session=chosen)
    assert other.is_in()
    assert inside.is_in()


def test_who_ends_one_shows_who_they_are(inside: Visitor, other: Visitor) -> None:
    grow_old(inside)
    asked = inside.send_form(PAGE, session="others").headers["location"]
    assert asked.startswith("/admin/confirm/")
    assert other.is_in()
    done = inside.send_form(asked, password=PASSWORD, next=PAGE)
    assert done.headers["location"] == PAGE
    inside.send_form(PAGE, session="others")
    assert not other.is_in()
    assert inside.is_in()


def test_who_comes_by_a_provider_signs_in_again(guarded: Instance, visitor: Visitor, provider: Provider) -> None:
    provider.say(person(groups="it-audit"))
    with Visitor(guarded) as second:
        for browser in (visitor, second):
            assert come(browser).headers["location"] == "/admin/"
        grow_old(visitor)
        said = visitor.send_form(PAGE, session="others")
        assert (said.status_code, "sign in again" in error(said)) == (403, True)
        assert second.is_in()
        visitor.send_form("/admin/logout/")
        come(visitor)
        visitor.send_form(PAGE, session="others")
        assert not second.is_in()


def test_another_factor_ends_the_others(inside: Visitor, other: Visitor) -> None:
    """As the end of one does, and new recovery codes."""
    inside.send_form(f"/admin/confirm/?next={FACTORS}", password=PASSWORD, next=FACTORS)
    inside.send_form(f"{FACTORS}recovery-codes/generate/")
    assert not other.is_in()
    assert inside.is_in()


def test_so_does_another_password(inside: Visitor, other: Visitor, name: str) -> None:
    from django.contrib.auth.models import User

    assert change(inside, "another one that is long")
    assert not other.is_in()
    assert inside.is_in()
    assert User.objects.get(username=name).console_sessions.count() == 1  # type: ignore[attr-defined]


def test_and_a_factor_that_an_administrator_takes_away(
    inside: Visitor, other: Visitor, guarded: Instance, name: str
) -> None:
    from allauth.mfa.models import Authenticator

    codes = Authenticator.objects.get(user__username=name, type="recovery_codes")
    with account("admin") as boss, Visitor(guarded) as administrator:
        open_for(administrator, boss)
        administrator.send_form(f"/admin/mfa/authenticator/{codes.pk}/delete/", post="yes")
        assert administrator.is_in()
    assert not other.is_in()
    assert not inside.is_in()


async def test_an_administrator_ends_all_of_an_account_within_five_seconds(
    guarded: Instance, visitor: Visitor, auditor: Any, watchers: list[Socket]
) -> None:
    with account("admin") as boss, Visitor(guarded) as administrator:
        open_for(administrator, boss)
        before = time.monotonic()
        administrator.send_form("/admin/auth/user/", action="end_sessions", _selected_action=[auditor.pk, boss.pk])
        assert await asyncio.gather(*(one.closed() for one in watchers)) == [1008] * WATCHERS
        assert time.monotonic() - before < 5 + HELD_UP
        assert visitor.get("/admin/").headers["location"].startswith(LOGIN)
        assert administrator.is_in(), "its own goes on"
        [line] = told(guarded, event="session_ended", account=auditor.username, by=boss.username)
        assert line["sessions"] == 1


def test_accounts_and_factors_are_changed_by_who_has_just_shown_who_they_are(
    inside: Visitor, other: Visitor, name: str
) -> None:
    from allauth.mfa.models import Authenticator
    from django.contrib.auth.models import User

    own, factors = User.objects.get(username=name), Authenticator.objects.filter(user__username=name)
    page, taken_away = f"/admin/auth/user/{own.pk}/change/", f"/admin/mfa/authenticator/{factors[0].pk}/delete/"
    new = {"password1": "another one that is long", "password2": "another one that is long"}
    tries = (
        (page, {"username": name, "email": "new@example.org"}),
        ("/admin/auth/user/", {"action": "delete_selected", "_selected_action": [own.pk], "post": "yes"}),
        (taken_away, {"post": "yes"}),
        (f"/admin/auth/user/{own.pk}/password/", new),
    )
    grow_old(inside)
    for path, fields in tries:
        assert inside.send_form(path, **fields).headers["location"].startswith("/admin/confirm/"), path
    assert inside.get(page).status_code == 200, "who only looks"
    assert (own.email, factors.count()) == ("", 2)
    assert User.objects.get(username=name).password == own.password
    inside.send_form(f"/admin/confirm/?next={page}", password=PASSWORD, next=page)
    assert inside.send_form(taken_away, post="yes").headers["location"] == "/admin/"
    assert not factors.filter(pk=taken_away.split("/")[-3])


@pytest.mark.parametrize("role", ["operator", "auditor", "developer"])
def test_nobody_else_does(guarded: Instance, visitor: Visitor, auditor: Any, role: str) -> None:
    with account(role) as made, Visitor(guarded) as one:
        open_for(visitor, auditor)
        open_for(one, made)
        chosen = {"action": "end_sessions", "_selected_action": [auditor.pk]}
        assert one.send_form("/admin/auth/user/", **chosen).status_code == 403
    assert visitor.is_in()


def test_a_session_that_is_ended_does_not_come_back(inside: Visitor, name: str) -> None:
    """Though a request of it was under way."""
    from django.contrib.auth.models import User
    from django.contrib.sessions.backends.base import UpdateError

    session = session_of(inside)
    session.load()
    session["more"] = 1
    assert end_all(User.objects.get(username=name).pk) == 1
    with pytest.raises(UpdateError):
        session.save()
    assert not inside.is_in()
