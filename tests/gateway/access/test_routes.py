"""Of every address it is decided who may what there, docs/permissions.md says it, and so it is."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.gateway.models import Budget, Key, Team
from citadel.urls import SOCKETS
from tests.gateway.access.routes import (
    AROUND,
    IN_TEAM,
    KEYS,
    OF_TEAMS,
    PAGES,
    UNDESCRIBED,
    WHO_MAY_WATCH,
    decision,
    page,
    routes,
)
from tests.gateway.access.test_permissions import EVERYBODY, WHO_MAY
from tests.gateway.client import Client
from tests.house.modules import ROOT
from tests.instance import Instance
from tests.orchestration.socket import refused, watching

PAGE = ROOT / "docs/permissions.md"
NEW_KEY = {"name": "n", "limits": {"requests_per_minute": 1, "concurrent": 1}}
WRITES: dict[str, dict[str, Any]] = {
    "POST /api/v1/keys": {**NEW_KEY, "team": "{team}"},
    "PATCH /api/v1/keys/{key_id}": {},
    "DELETE /api/v1/keys/{key_id}": {},
    "POST /api/v1/keys/{key_id}/rotate": {},
    "PATCH /api/v1/teams/{team}": {},
    "PUT /api/v1/teams/{team}/members/{user}": {},
    "DELETE /api/v1/teams/{team}/members/{user}": {},
    "POST /api/v1/budgets": {"key_id": "{key_id}", "period": "week", "tokens": 1},
    "PATCH /api/v1/budgets/{budget_id}": {},
    "DELETE /api/v1/budgets/{budget_id}": {},
}
"""What is sent to change something of a team."""
QUERIES = {
    "GET /api/v1/keys": "?team={team}",
    "GET /api/v1/budgets": "?team={team}",
    "GET /api/v1/usage": "?team={team}",
}
OF_ALL = {"GET /api/v1/teams", "POST /api/v1/teams"}
"""What has no object that could be another team's."""


def test_of_every_address_it_is_decided_who_may() -> None:
    assert [route for route in routes() if decision(route) is None] == []
    assert SOCKETS.keys() == WHO_MAY_WATCH.keys()


def test_where_there_is_a_websocket_who_asks_plainly_is_told_so() -> None:
    """And nothing else is there: what is below `/ws/` can be asked for as a WebSocket alone."""
    assert {route.address for route in routes() if "/ws/" in route.address} == {f"GET {path}" for path in SOCKETS}


def test_nothing_is_decided_of_what_is_not_there() -> None:
    there = {route.name for route in routes()}
    assert WHO_MAY.keys() <= {route.address for route in routes()}
    assert {*AROUND, *UNDESCRIBED} <= there | {"login", "logout"}
    assert {f"{model}_changelist" for model in PAGES} <= there
    assert set(KEYS) == EVERYBODY
    assert {*WRITES, *QUERIES, *OF_ALL} <= {route.address for route in routes()}


def test_what_is_of_teams_is_tried() -> None:
    """An address with an object of a team is asked for another's."""
    tried = {*WRITES, *QUERIES, *OF_ALL}
    of_teams = [route.address for route in routes() if route.is_api and route.address.split()[1].startswith(OF_TEAMS)]
    assert len(of_teams) > len(tried)
    assert [one for one in of_teams if one not in tried and not (one.startswith("GET") and "{" in one)] == []


def test_the_page_says_what_is_decided(tmp_path: Path) -> None:
    found = tmp_path / "permissions.md"
    found.write_text(page())
    assert PAGE.read_text() == page(), f"If the change is meant: cp {found} {PAGE}"


@dataclass(frozen=True)
class Belongings:
    """A team with a key, a budget and a member, made for one request."""

    team: str
    key_id: str
    budget_id: str
    user: str

    @classmethod
    def made(cls, citadel: Instance, team: str, user: str) -> "Belongings":
        key_id = citadel.key(team, concurrent=1, requests_per_minute=1, max_priority="low").split("_")[1]
        budget = Budget.objects.create(key=Key.objects.get(key_id=key_id), period="day", tokens=1)
        from django.contrib.auth.models import User

        Team.objects.get(slug=team).memberships.get_or_create(user=User.objects.get(username=user))
        return cls(team, key_id, str(budget.pk), user)

    def named(self, text: str) -> str:
        for name, value in vars(self).items():
            text = text.replace(f"{{{name}}}", value)
        return text


@pytest.fixture
def user(citadel: Instance) -> Any:
    from django.contrib.auth.models import User

    made = User.objects.create_user(f"p-{secrets.token_hex(4)}")
    yield made.username
    made.delete()


@pytest.mark.parametrize("role", sorted(EVERYBODY))
async def test_what_is_of_teams_is_for_whom_the_table_says(
    citadel: Instance, client: Client, user: str, role: str
) -> None:
    """Each address with what is of the own team, of another one, and with what is not there."""
    client.session.headers.pop("authorization")
    team, other = (f"team-{secrets.token_hex(4)}" for _ in range(2))
    citadel.key(other)
    key = None if role == "nobody" else citadel.key(team, role=role)
    citadel.key(team)
    wrong = {}
    for route in routes():
        if not route.is_api or not route.address.split()[1].startswith(OF_TEAMS) or route.address in OF_ALL:
            continue
        who = decision(route)
        assert isinstance(who, frozenset)
        found = []
        absent = Belongings(f"team-{secrets.token_hex(4)}", "k" * 10, "987654321987", user)
        asked = (Belongings.made(citadel, team, user), Belongings.made(citadel, other, user), absent)
        for belongings in asked:
            method, path = route.address.split()
            body = WRITES.get(route.address)
            data = None if body is None else belongings.named(json.dumps(body)).encode()
            address = belongings.named(path + QUERIES.get(route.address, ""))
            reply = await client.ask(method, address, data=data, key=key)
            told = reply.body.decode()
            for name, value in vars(belongings).items():
                told = told.replace(value, name)
            found.append((reply.status, told))
        statuses = [status for status, _ in found]
        if role not in who:
            expected = [401 if role == "nobody" else 403] * 3
        elif role in IN_TEAM:
            expected = [200, 404, 404]
        else:
            expected = [200, 200, 404]
        if statuses != expected or ((role not in who or role in IN_TEAM) and found[1] != found[2]):
            wrong[route.address] = found
    assert wrong == {}


@pytest.mark.parametrize("role", sorted(EVERYBODY))
async def test_who_may_watch_is_whom_the_table_says(citadel: Instance, role: str) -> None:
    for path, who in WHO_MAY_WATCH.items():
        headers = {} if role == "nobody" else {"authorization": f"Bearer {citadel.key(role=role)}"}
        if role in who:
            async with watching(citadel, path=path, headers=headers) as socket:
                await socket.next()
        else:
            assert (await refused(citadel, headers, path))[0] == (401 if role == "nobody" else 403)
