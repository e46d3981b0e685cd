"""`/api/v1/teams/{team}/members`: said by administrators, seen by who sees the team."""

import secrets
import time
from collections.abc import Iterator
from decimal import Decimal

import pytest
from django.utils import timezone

from apps.gateway.models import Team
from tests.gateway.client import Client
from tests.instance import Instance


@pytest.fixture
def names(citadel: Instance) -> Iterator[list[str]]:
    from django.contrib.auth.models import User

    made = [User.objects.create_user(f"p{number}-{secrets.token_hex(4)}@x.example") for number in range(3)]
    yield [user.username for user in made]
    for user in made:
        user.delete()


@pytest.fixture
def team(citadel: Instance) -> Iterator[str]:
    made = Team.objects.create(slug=f"team-{secrets.token_hex(4)}", name="t")
    yield made.slug
    made.delete()


async def put(
    client: Client, citadel: Instance, team: str, name: str, body: bytes = b"{}"
) -> tuple[int, dict[str, object]]:
    reply = await client.ask("PUT", f"/api/v1/teams/{team}/members/{name}", data=body, key=citadel.admin_key)
    return reply.status, reply.json()


async def test_people_are_put_in_given_another_role_and_taken_out(
    citadel: Instance, client: Client, team: str, names: list[str]
) -> None:
    name, path = names[0], f"/api/v1/teams/{team}/members"
    told = {"user": name, "team": team, "created": pytest.approx(time.time(), abs=30)}
    assert await put(client, citadel, team, name) == (200, {**told, "role": "member"})
    assert await put(client, citadel, team, name, b'{"role": "owner"}') == (200, {**told, "role": "owner"})
    for key in (citadel.admin_key, *(citadel.key(team, role=role) for role in ("owner", "member", "viewer"))):
        assert (await client.get(path, key=key)).json() == {"data": [{**told, "role": "owner"}], "next": None}
    assert await put(client, citadel, team, name, b'{"role": "viewer"}') == (200, {**told, "role": "viewer"})
    gone = await client.ask("DELETE", f"{path}/{name}", key=citadel.admin_key)
    assert gone.json() == {**told, "role": "viewer"}
    assert (await client.ask("DELETE", f"{path}/{name}", key=citadel.admin_key)).status == 404
    assert (await client.get(path, key=citadel.admin_key)).json()["data"] == []


async def test_the_list_comes_in_pages(citadel: Instance, client: Client, team: str, names: list[str]) -> None:
    for name in names:
        await put(client, citadel, team, name)
    found, cursor = [], ""
    while cursor is not None:
        query = f"?limit=2&cursor={cursor.replace('@', '%40')}"
        page = (await client.get(f"/api/v1/teams/{team}/members{query}", key=citadel.admin_key)).json()
        found.append([row["user"] for row in page["data"]])
        cursor = page["next"]
    assert found == [names[:2], names[2:]]


@pytest.mark.parametrize(
    ("name", "body", "status", "param"),
    [
        (None, b'{"role": "admin"}', 400, "role"),
        (None, b'{"role": 1}', 400, "role"),
        (None, b'{"x": 1}', 400, "x"),
        ("nobody-here", b"{}", 404, "user"),
        ("a%00b", b"{}", 404, "user"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    citadel: Instance,
    client: Client,
    team: str,
    names: list[str],
    name: str | None,
    body: bytes,
    status: int,
    param: str,
) -> None:
    found, told = await put(client, citadel, team, name or names[0], body)
    assert (found, told["error"]["param"]) == (status, param)  # type: ignore[index]
    assert (await client.get(f"/api/v1/teams/{team}/members", key=citadel.admin_key)).json()["data"] == []


def test_an_administrator_whose_key_was_revoked_a_moment_ago_changes_no_teams(
    citadel: Instance, team: str, names: list[str]
) -> None:
    """Its worker may not have heard of it yet, and what it made somebody would last."""
    from apps.gateway import members_api, prices_api, teams_api
    from apps.gateway.access.keys import granting
    from apps.gateway.models import Key, Membership, Price
    from citadel.errors import Unauthenticated

    key = Key.objects.get(key_id=citadel.key(role="admin").split("_")[1])
    by = granting._caller(key)
    members_api._put(by, team, names[0], "member")
    Key.objects.filter(pk=key.pk).update(revoked=timezone.now())
    price = f"model-{secrets.token_hex(4)}"
    for attempt in (
        lambda: members_api._put(by, team, names[1], "owner"),
        lambda: members_api._remove(by, team, names[0]),
        lambda: teams_api._create(by, teams_api.NewTeam(f"team-{secrets.token_hex(4)}")),
        lambda: teams_api._change(by, team, teams_api.ChangedTeam(name="other")),
        lambda: prices_api._set(by, price, {"prompt": Decimal(1)}),
    ):
        with pytest.raises(Unauthenticated):
            attempt()
    assert [member.user.username for member in Membership.objects.filter(team__slug=team)] == [names[0]]
    assert Team.objects.get(slug=team).name == "t"
    assert not Price.objects.filter(model=price).exists()
