"""`/api/v1/teams`: made and named by administrators, seen by who sees keys."""

import secrets
import time
from urllib.parse import quote

import pytest

from tests.gateway.client import Client
from tests.instance import Instance

TEAMS = "/api/v1/teams"


async def test_a_team_is_made_and_named_otherwise(citadel: Instance, client: Client) -> None:
    slug = f"team-{secrets.token_hex(4)}"
    made = (await client.post({"slug": slug, "name": "First"}, TEAMS, key=citadel.admin_key)).json()
    limits = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}
    told = {"slug": slug, "name": "First", "limits": limits, "keys": 0}
    assert made == {**told, "created": pytest.approx(time.time(), abs=30)}
    again = await client.post({"slug": slug}, TEAMS, key=citadel.admin_key)
    assert (again.status, again.code) == (409, "team_exists")
    changed = await client.ask("PATCH", f"{TEAMS}/{slug}", data=b'{"name": "Second"}', key=citadel.admin_key)
    assert changed.json() == {**made, "name": "Second"}
    key = citadel.key(slug)
    citadel.key(slug)
    await client.ask("DELETE", f"/api/v1/keys/{key.split('_')[1]}", key=citadel.admin_key)
    assert (await client.get(f"{TEAMS}/{slug}", key=citadel.admin_key)).json()["keys"] == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "slug"),
        (b"", "slug"),
        (b'{"slug": "a b"}', "slug"),
        (b'{"slug": ""}', "slug"),
        (b'{"slug": "a\\n"}', "slug"),
        (b'{"slug": "a", "x": 1}', "x"),
    ],
)
async def test_a_bad_field_is_named(citadel: Instance, client: Client, body: bytes, param: str) -> None:
    reply = await client.post(body, TEAMS, key=citadel.admin_key)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


async def test_of_limits_that_alone_is_changed_which_is_named(citadel: Instance, client: Client) -> None:
    slug, said = f"team-{secrets.token_hex(4)}", {"requests_per_minute": 60, "concurrent": 2}
    await client.post({"slug": slug, "limits": said}, TEAMS, key=citadel.admin_key)
    for body, expected in (
        (b'{"limits": {"tokens_per_minute": 1000}}', {**said, "tokens_per_minute": 1000}),
        (b'{"limits": {}}', {**said, "tokens_per_minute": 1000}),
        (b'{"limits": {"concurrent": null}}', {**said, "tokens_per_minute": 1000, "concurrent": None}),
    ):
        changed = await client.ask("PATCH", f"{TEAMS}/{slug}", data=body, key=citadel.admin_key)
        assert changed.json()["limits"] == expected


@pytest.mark.parametrize("path", ["teams/x", "keys/x", "budgets/1"])
async def test_a_change_without_a_body_is_none(citadel: Instance, client: Client, path: str) -> None:
    reply = await client.ask("PATCH", f"/api/v1/{path}", data=b"", key=citadel.admin_key)
    assert (reply.status, reply.code) == (400, "invalid_json")


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
async def test_of_all_teams_one_sees_the_own(citadel: Instance, client: Client, role: str) -> None:
    team, other = (f"team-{secrets.token_hex(4)}" for _ in range(2))
    citadel.key(other)
    key = citadel.key(team, role=role)
    assert [row["slug"] for row in (await client.get(TEAMS, key=key)).json()["data"]] == [team]
    absent = f"team-{secrets.token_hex(4)}"
    replies = [await client.get(f"{TEAMS}/{slug}", key=key) for slug in (other, absent)]
    assert {reply.status for reply in replies} == {404}
    assert replies[0].body.replace(other.encode(), absent.encode()) == replies[1].body


async def test_the_list_comes_in_pages(citadel: Instance, client: Client) -> None:
    for _ in range(3):
        citadel.key()
    found, cursor = [], ""
    while cursor is not None:
        page = (await client.get(f"{TEAMS}?limit=50&cursor={quote(cursor)}", key=citadel.admin_key)).json()
        found += [row["slug"] for row in page["data"]]
        cursor = page["next"]
    assert found == sorted(set(found))
    assert len(found) >= 3
