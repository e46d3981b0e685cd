"""Of the console's pages each is for whom the table says: of the own team, of others, and of what is not there."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.access.console.test_sessions import open_for
from tests.gateway.access.console.test_teams import NOWHERE, Belongings, belong, belongings, other, own
from tests.gateway.access.console.visitor import LOGIN, Visitor, account
from tests.gateway.access.routes import AROUND, IN_TEAM, PAGES, PEOPLE, SIGNED_IN, routes
from tests.instance import Instance

__all__ = ["belongings", "other", "own"]

OF_TEAMS = {f"gateway_{name}": name for name in ("team", "key", "budget", "spend")}


@pytest.fixture(params=PEOPLE)
def role(request: pytest.FixtureRequest, guarded: Instance, visitor: Visitor, own: Belongings) -> Iterator[str]:
    """Of somebody whose session the visitor has."""
    is_developer = request.param in IN_TEAM | {"developer"}
    with account("developer" if is_developer else request.param) as person:
        if request.param in IN_TEAM:
            belong(person, own.team, request.param)
        open_for(visitor, person)
        yield request.param


def test_each_page_is_for_whom_the_table_says(visitor: Visitor, role: str, own: Belongings, other: Belongings) -> None:
    wrong: dict[str, Any] = {}
    for model, page in PAGES.items():
        base = f"/admin/{model.replace('_', '/')}/"
        asked = {
            "see": visitor.get(base).status_code,
            "add": visitor.get(f"{base}add/").status_code,
            "change": visitor.send_form(f"{base}{NOWHERE}/change/").status_code,
            "delete": visitor.get(f"{base}{NOWHERE}/delete/").status_code,
        }
        is_there = {"see": 200, "add": 200, "change": 302, "delete": 302}
        for verb, who in page._asdict().items():
            if model in OF_TEAMS and verb in ("change", "delete"):
                continue
            if asked[verb] != (is_there[verb] if role in who else 403):
                wrong[f"{verb} {model}"] = asked[verb]
    assert wrong == {}


def test_rows_of_teams_are_for_whom_the_table_says(
    visitor: Visitor, role: str, own: Belongings, other: Belongings
) -> None:
    wrong: dict[str, Any] = {}
    for model, name in OF_TEAMS.items():
        page, base = PAGES[model], f"/admin/gateway/{name}/"
        sees_others = role in page.see and role not in IN_TEAM
        for method, verb, who in (
            ("GET", "change", page.see),
            ("GET", "history", page.see),
            ("POST", "change", page.change),
            ("GET", "delete", page.delete),
        ):
            rows = (own[name].pk, other[name].pk, NOWHERE)
            ask = visitor.get if method == "GET" else visitor.send_form
            found = [ask(f"{base}{row}/{verb}/").status_code for row in rows]
            allowed = 200 if role in who else 403
            seen = [allowed if role in page.see else 404, allowed if sees_others else 404, 404]
            if found != seen:
                wrong[f"{method} {name} {verb}"] = found, seen
    assert wrong == {}


def test_who_is_not_signed_in_is_led_there(guarded: Instance) -> None:
    wrong = {}
    with Visitor(guarded) as stranger:
        for route in routes():
            if route.is_api or AROUND.get(route.name, SIGNED_IN) != SIGNED_IN:
                continue
            path = re.sub(r"{\w+}", "1", route.address.removeprefix("GET ").replace("{app_label}", "gateway"))
            answer = stranger.get(path)
            if answer.status_code != 302 or not answer.headers["location"].startswith((LOGIN, "/admin/1/1/")):
                wrong[path] = answer.status_code
    assert wrong == {}


def test_passwords_of_others_are_set_by_administrators(visitor: Visitor, role: str) -> None:
    with account("developer") as person:
        answer = visitor.get(f"/admin/auth/user/{person.pk}/password/")
        assert answer.status_code == (200 if role == "admin" else 403)
