"""People of the console in teams: owners manage its keys, members and viewers see them, and nobody sees anything of
others'.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from apps.gateway.models import Budget, Key, Membership, Spend, Team
from tests.gateway.access.console.test_sessions import WATCHERS, open_for
from tests.gateway.access.console.visitor import LOGIN, Visitor, account
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import watching

OBJECTS = ("team", "key", "budget", "spend")
PAGES = ("change", "history", "delete")
NOWHERE = 987_654_321


@dataclass(frozen=True)
class Belongings:
    """A team and what is of it."""

    team: Team
    key: Key
    owners_key: Key
    budget: Budget
    spend: Spend

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def words(self) -> list[str]:
        """What no page may hold that is for others."""
        return [self.team.slug, self.key.key_id, self.key.name, self.owners_key.key_id, self.team.name]


@pytest.fixture
def belongings(guarded: Instance) -> Iterator[Callable[[], Belongings]]:
    made: list[Belongings] = []

    def make() -> Belongings:
        slug = f"team-{secrets.token_hex(4)}"
        ids = [guarded.key(slug, role=role).split("_")[1] for role in ("developer", "owner")]
        Key.objects.filter(key_id=ids[0]).update(name=f"name-{secrets.token_hex(4)}", requests_per_minute=None)
        Key.objects.filter(key_id=ids[0]).update(concurrent=None, max_priority="high")
        Team.objects.filter(slug=slug).update(name=f"called-{secrets.token_hex(4)}")
        team = Team.objects.get(slug=slug)
        budget = Budget.objects.create(team=team, period="day", tokens=1000)
        spend = Spend.objects.create(holder=f"team:{slug}", day="2026-01-01", requests=1, tokens=2, money=3)
        made.append(Belongings(team, *(Key.objects.get(key_id=one) for one in ids), budget, spend))
        return made[-1]

    yield make
    for one in made:
        one.spend.delete()
        one.team.delete()


@pytest.fixture
def own(belongings: Callable[[], Belongings]) -> Belongings:
    return belongings()


@pytest.fixture
def other(belongings: Callable[[], Belongings]) -> Belongings:
    return belongings()


@pytest.fixture
def developer(guarded: Instance) -> Iterator[Any]:
    with account("developer") as made:
        yield made


def belong(user: Any, team: Team, role: str) -> Membership:
    return Membership.objects.create(user=user, team=team, role=role)


def page(model: str, row: Any = None, name: str = "change") -> str:
    return f"/admin/gateway/{model}/" + (f"{getattr(row, 'pk', row)}/{name}/" if row else "")


@pytest.fixture
def somebody(visitor: Visitor, developer: Any, own: Belongings, other: Belongings) -> Callable[[str | None], Visitor]:
    """A developer's browser, who is that in the own team; None is nothing."""

    def come(role: str | None) -> Visitor:
        if role:
            belong(developer, own.team, role)
        open_for(visitor, developer)
        return visitor

    return come


Somebody = Callable[[str | None], Visitor]


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
def test_one_sees_the_own_team_and_nothing_of_others(
    somebody: Somebody, own: Belongings, other: Belongings, role: str
) -> None:
    visitor = somebody(role)
    first = visitor.get("/admin/").text
    for name in OBJECTS:
        assert f"/admin/gateway/{name}/" in first
        listed = visitor.get(page(name))
        assert listed.status_code == 200
        assert own.team.slug in listed.text
        shown = visitor.get(page(name, own[name]))
        assert shown.status_code == 200
        assert visitor.get(page(name, own[name], "history")).status_code == 200
        for seen in (listed.text, shown.text):
            assert not [word for word in other.words if word in seen]
    assert own.key.name in visitor.get(page("key", own.key)).text
    assert not re.search("/admin/(gateway/price|auth|audit|orchestration|mfa)/", first)


@pytest.mark.parametrize("role", ["owner", "member", "viewer", None])
def test_what_is_another_s_is_like_what_is_not_there(somebody: Somebody, other: Belongings, role: str | None) -> None:
    visitor = somebody(role)
    for name in OBJECTS:
        for which in PAGES:
            theirs, absent = (visitor.get(page(name, row, which)) for row in (other[name], NOWHERE))
            assert (theirs.status_code, absent.status_code) == (404, 404), (name, which)
            assert theirs.text == absent.text
            theirs, absent = (visitor.send_form(page(name, row, which)) for row in (other[name], NOWHERE))
            assert (theirs.status_code, absent.status_code) == (404, 404), (name, which)
            assert theirs.text == absent.text
    for model in ("team", "key"):
        from django.contrib.contenttypes.models import ContentType

        kind = ContentType.objects.get(app_label="gateway", model=model).pk
        theirs, absent = (visitor.get(f"/admin/r/{kind}/{row}/") for row in (other[model].pk, NOWHERE))
        assert (theirs.status_code, theirs.text) == (404, absent.text)


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
def test_neither_filters_nor_choices_nor_searches_tell_of_others(
    somebody: Somebody, own: Belongings, other: Belongings, role: str
) -> None:
    visitor = somebody(role)
    seen = []
    for query in (
        f"?team__id__exact={other.team.pk}",
        f"?q={other.team.slug}",
        f"?q={other.key.key_id}",
        "?_facets=True",
        "?all=",
    ):
        seen += [visitor.get(page(name) + query).text for name in ("key", "team", "budget", "spend")]
    for field in ("team", "key"):
        query = f"app_label=gateway&model_name=budget&field_name={field}"
        found = visitor.get(f"/admin/autocomplete/?{query}&term=")
        assert own.team.slug in found.text
        seen += [found.text, visitor.get(f"/admin/autocomplete/?{query}&term={other[field]}").text]
    assert (
        visitor.get("/admin/autocomplete/?app_label=gateway&model_name=membership&field_name=user").status_code == 403
    )
    if role == "owner":
        seen.append(visitor.get("/admin/gateway/key/add/").text)
        assert own.team.slug in seen[-1]
    told = [word for word in (other.key.name, other.team.name) for text in seen if word in text]
    assert not told
    without_what_was_asked = [re.sub(r'(value|href|placeholder)="[^"]*"', "", text) for text in seen]
    assert not [word for word in other.words for text in without_what_was_asked if word in text]


FORM = {"name": "new", "max_priority": "high", "requests_per_minute": "7"}


def test_an_owner_makes_changes_rotates_and_revokes_keys(somebody: Somebody, own: Belongings) -> None:
    visitor = somebody("owner")
    made = visitor.send_form("/admin/gateway/key/add/", **FORM, team=own.team.pk)
    assert made.status_code == 302, made.text
    key = Key.objects.get(team=own.team, name="new")
    assert (key.role, key.requests_per_minute) == ("developer", 7)
    assert f"ctd_{key.key_id}_" in visitor.get(page("key")).text
    changed = visitor.send_form(page("key", key), **{**FORM, "name": "newer", "team": "1", "role": "admin"})
    assert changed.status_code == 302, changed.text
    key.refresh_from_db()
    assert (key.name, key.role, key.team) == ("newer", "developer", own.team)
    chosen = {"_selected_action": str(key.pk)}
    visitor.send_form(page("key"), action="rotate", **chosen)
    assert f"ctd_{key.key_id}_" in visitor.get(page("key")).text
    visitor.send_form(page("key"), action="revoke", **chosen)
    key.refresh_from_db()
    assert key.revoked
    assert visitor.send_form(page("key", key), **FORM).status_code == 403


@pytest.mark.parametrize(
    "more",
    [
        {"requests_per_minute": "61"},
        {"requests_per_minute": "0"},
        {"concurrent": "1000"},
        {"tokens_per_minute": "x"},
        {"max_priority": "critical"},
        {"scopes": "nonsense"},
    ],
)
def test_an_owner_gives_no_more_than_a_developer_s_key_may(
    somebody: Somebody, own: Belongings, more: dict[str, str]
) -> None:
    visitor = somebody("owner")
    for where in ("/admin/gateway/key/add/", page("key", own.key)):
        answer = visitor.send_form(where, **{**FORM, "team": own.team.pk, **more})
        assert (answer.status_code, "errornote" in answer.text) == (200, True), where
    assert not Key.objects.filter(name="new").exists()


def test_an_owner_gives_no_role_identity_or_team_of_others(
    somebody: Somebody, own: Belongings, other: Belongings
) -> None:
    visitor = somebody("owner")
    given = {"role": "owner", "certificates": "ab" * 32, "team": own.team.pk}
    assert visitor.send_form("/admin/gateway/key/add/", **{**FORM, **given}).status_code == 302
    key = Key.objects.get(team=own.team, name="new")
    assert (key.role, key.certificates) == ("developer", None)
    visitor.get("/admin/")  # which says that
    refused = [
        visitor.send_form("/admin/gateway/key/add/", **FORM, team=team).text for team in (other.team.pk, NOWHERE)
    ]
    refused = [re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", text) for text in refused]
    assert "errornote" in refused[0]
    assert refused[0] == refused[1]


def test_an_owner_s_key_is_seen_and_revoked_and_not_rotated_by_an_owner(somebody: Somebody, own: Belongings) -> None:
    visitor = somebody("owner")
    chosen = {"_selected_action": str(own.owners_key.pk)}
    assert visitor.get(page("key", own.owners_key)).status_code == 200
    assert visitor.send_form(page("key", own.owners_key), **FORM).status_code == 403
    visitor.send_form(page("key"), action="rotate", **chosen)
    shown = visitor.get(page("key")).text
    assert "may do more than you can give" in shown
    assert "ctd_" not in shown
    visitor.send_form(page("key"), action="revoke", **chosen)
    own.owners_key.refresh_from_db()
    assert own.owners_key.revoked


def test_nobody_acts_on_keys_of_others_and_members_and_viewers_on_none(
    somebody: Somebody, own: Belongings, other: Belongings, developer: Any
) -> None:
    visitor = somebody("owner")
    before = [bytes(key.digest) for key in (own.key, other.key)]
    for action in ("rotate", "revoke"):
        visitor.send_form(page("key"), action=action, _selected_action=str(other.key.pk))
    for role in ("member", "viewer"):
        Membership.objects.filter(user=developer).update(role=role)
        open_for(visitor, developer)
        for action in ("rotate", "revoke"):
            visitor.send_form(page("key"), action=action, _selected_action=str(own.key.pk))
        assert visitor.get("/admin/gateway/key/add/").status_code == 403
        assert visitor.send_form("/admin/gateway/key/add/", **FORM, team=own.team.pk).status_code == 403
        assert visitor.send_form(page("key", own.key), **FORM).status_code == 403
    for key in (own.key, other.key):
        key.refresh_from_db()
    assert [bytes(key.digest) for key in (own.key, other.key)] == before
    assert not own.key.revoked
    assert not other.key.revoked


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
def test_budgets_limits_members_and_prices_are_not_theirs_to_set(
    somebody: Somebody, own: Belongings, role: str
) -> None:
    visitor = somebody(role)
    for name in ("team", "budget", "spend"):
        assert (
            visitor.send_form(page(name, own[name]), tokens="5", name="x", requests_per_minute="9").status_code == 403
        )
        assert visitor.send_form(page(name, own[name], "delete"), post="yes").status_code == 403
        assert visitor.get(f"/admin/gateway/{name}/add/").status_code == 403
    for path in ("price/", "price/add/"):
        assert visitor.get(f"/admin/gateway/{path}").status_code == 403
    assert Budget.objects.get(pk=own.budget.pk).tokens == 1000


def test_of_two_teams_one_is_what_one_is_there(
    somebody: Somebody, own: Belongings, other: Belongings, developer: Any
) -> None:
    visitor = somebody("owner")
    belong(developer, other.team, "member")
    assert visitor.get(page("key", other.key)).status_code == 200
    assert visitor.send_form(page("key", other.key), **FORM).status_code == 403
    assert "errornote" in visitor.send_form("/admin/gateway/key/add/", **FORM, team=other.team.pk).text
    visitor.send_form(page("key"), action="revoke", _selected_action=[str(other.key.pk), str(own.key.pk)])
    for one in (own, other):
        one.key.refresh_from_db()
    assert own.key.revoked
    assert not other.key.revoked


def test_who_sees_all_teams_manages_the_own_alone(visitor: Visitor, own: Belongings, other: Belongings) -> None:
    with account("auditor") as auditor:
        belong(auditor, own.team, "owner")
        open_for(visitor, auditor)
        for belongings, status in ((own, 302), (other, 403)):
            assert visitor.get(page("key", belongings.key)).status_code == 200
            assert visitor.send_form(page("key", belongings.key), **FORM).status_code == status


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
def test_administrators_say_who_belongs_to_a_team(visitor: Visitor, own: Belongings, developer: Any, role: str) -> None:
    form = {"slug": own.team.slug, "name": own.team.name}
    inline = {"memberships-TOTAL_FORMS": 1, "memberships-INITIAL_FORMS": 0, "memberships-0-team": own.team.pk}
    added = {"memberships-0-user": developer.pk, "memberships-0-role": role}
    with account("admin") as administrator:
        open_for(visitor, administrator)
        found = visitor.get(
            f"/admin/autocomplete/?app_label=gateway&model_name=membership&field_name=user&term={developer.username}"
        )
        assert [row["text"] for row in found.json()["results"]] == [developer.username]
        answer = visitor.send_form(page("team", own.team), **form, **inline, **added)
        assert answer.status_code == 302, answer.text
    assert Membership.objects.get(user=developer).role == role
    open_for(visitor, developer)
    assert developer.username in visitor.get(page("team", own.team)).text


def take_the_group(user: Any) -> None:
    user.groups.clear()


def take_the_membership(user: Any) -> None:
    Membership.objects.filter(user=user).delete()


def make_a_member(user: Any) -> None:
    Membership.objects.filter(user=user).update(role="member")


def make_a_viewer(user: Any) -> None:
    Membership.objects.filter(user=user).update(role="viewer")


def seen_by(visitor: Visitor, guarded: Instance, own: Belongings) -> set[tuple[int, int]]:
    """What a key's page and the one that makes keys answer, on connections of their own."""
    seen = set()
    for _ in range(20):
        with Visitor(guarded) as fresh:
            fresh.cookies.update(visitor.cookies)
            seen.add((fresh.get(page("key", own.key)).status_code, fresh.get("/admin/gateway/key/add/").status_code))
    return seen


@pytest.mark.parametrize("change", [take_the_group, take_the_membership, make_a_member, make_a_viewer])
def test_who_is_less_in_a_team_can_less_at_once(
    guarded: Instance, somebody: Somebody, own: Belongings, developer: Any, change: Callable[[Any], None]
) -> None:
    """With each of four workers: requests on connections of their own come to any."""
    visitor = somebody("owner")
    assert visitor.get(page("key", own.key)).status_code == 200
    change(developer)
    assert seen_by(visitor, guarded, own) == {(302, 302)}, "and signs in anew"
    open_for(visitor, developer)
    assert seen_by(visitor, guarded, own) == {(200 if change in (make_a_member, make_a_viewer) else 404, 403)}
    assert visitor.send_form("/admin/gateway/key/add/", **FORM, team=own.team.pk).status_code == 403


def test_a_second_factor_that_was_taken_away_ends_the_session(guarded: Instance, visitor: Visitor) -> None:
    from allauth.mfa.models import Authenticator

    with account("developer") as person:
        visitor.sign_in(person.username)
        visitor.set_up()
        assert visitor.is_in()
        Authenticator.objects.filter(user=person).delete()
        with Visitor(guarded) as thief:
            thief.sign_in(person.username)
            thief.set_up()
            assert thief.is_in()
        assert visitor.get("/admin/").headers["location"].startswith(LOGIN)


async def test_and_what_it_watches_within_five_seconds(guarded: Instance, visitor: Visitor) -> None:
    from allauth.mfa.models import Authenticator

    with account("auditor") as person:
        visitor.sign_in(person.username)
        visitor.set_up()
        headers = {"cookie": visitor.cookie, "origin": guarded.url}
        async with AsyncExitStack() as stack:
            opening = [stack.enter_async_context(watching(guarded, headers=headers)) for _ in range(WATCHERS)]
            watchers = await asyncio.gather(*opening)
            before = time.monotonic()
            Authenticator.objects.filter(user=person).delete()
            assert await asyncio.gather(*(one.closed() for one in watchers)) == [1008] * WATCHERS
            assert time.monotonic() - before < 5 + HELD_UP


def test_who_takes_the_last_factor_away_sets_up_another(visitor: Visitor) -> None:
    with account("developer") as person:
        visitor.sign_in(person.username)
        visitor.set_up()
        gone = visitor.send_form("/admin/second-factor/totp/deactivate/")
        assert gone.status_code == 302
        assert visitor.get("/admin/").headers["location"] == "/admin/second-factor/"
        visitor.set_up()
        assert visitor.is_in()
