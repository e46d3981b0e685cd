"""`/api/v1/keys`: an administrator's keys, an owner's of the own team, and what nobody can give."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apps.gateway.access.keys.shape import well_formed
from apps.gateway.models import Key
from tests.fleet.control import Fleet
from tests.gateway.client import Client, Reply, chat
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
KEYS = "/api/v1/keys"
LATER = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
USES = "/v1/models"


def slug() -> str:
    return f"team-{secrets.token_hex(4)}"


def id_of(key: str) -> str:
    return key.split("_")[1]


class Holder:
    """Somebody with a key, who asks for those of others."""

    def __init__(self, client: Client, key: str):
        self.key = key
        self._client = client

    async def create(self, **fields: Any) -> Reply:
        return await self._client.post({"name": "n", **fields}, KEYS, key=self.key)

    async def made(self, **fields: Any) -> dict[str, Any]:
        reply = await self.create(**fields)
        assert reply.status == 200, reply.body
        row: dict[str, Any] = reply.json()
        return row

    async def row(self, key_id: str) -> dict[str, Any]:
        reply = await self.ask("GET", key_id)
        assert reply.status == 200, reply.body
        row: dict[str, Any] = reply.json()
        return row

    async def ask(self, method: str, key_id: str, body: bytes | None = None, verb: str = "") -> Reply:
        return await self._client.ask(method, f"{KEYS}/{key_id}{verb}", data=body, key=self.key)

    async def change(self, key_id: str, body: str) -> Reply:
        return await self.ask("PATCH", key_id, body.encode())

    async def listed(self, query: str = "") -> Any:
        return (await self._client.get(f"{KEYS}?limit=1000{query}", key=self.key)).json()


@pytest.fixture
def team() -> str:
    return slug()


@pytest.fixture
def admin(citadel: Instance, client: Client) -> Holder:
    return Holder(client, citadel.admin_key)


@pytest.fixture
def owner(citadel: Instance, client: Client, team: str) -> Holder:
    return Holder(client, citadel.key(team, role="owner"))


async def test_a_key_is_made_shown_once_and_good_at_once(citadel: Instance, client: Client, admin: Holder) -> None:
    team = slug()
    citadel.key(team)
    before = time.time()
    made = await admin.made(team=team, limits={"requests_per_minute": 7})
    key = made.pop("key")
    assert made.pop("signing_secret").startswith(f"cts_{id_of(key)}_")
    assert well_formed(key.encode())
    assert made == {
        "key_id": id_of(key),
        "name": "n",
        "team": team,
        "role": "developer",
        "scopes": None,
        "models": None,
        "addresses": None,
        "servers": None,
        "certificates": None,
        "public_key": None,
        "limits": {"requests_per_minute": 7, "tokens_per_minute": None, "concurrent": None},
        "max_priority": "high",
        "created": pytest.approx(before, abs=30),
        "expires": None,
        "last_used": None,
        "revoked": None,
        "former_until": None,
    }
    assert (await client.get(USES, key=key)).status == 200
    row = await admin.row(made["key_id"])
    assert "key" not in row
    assert key not in str(await admin.listed())


async def test_when_it_was_last_used_is_told(citadel: Instance, client: Client, admin: Holder) -> None:
    key = citadel.key()
    assert (await admin.row(id_of(key)))["last_used"] is None
    before = time.time()
    await client.get(USES, key=key)
    deadline = time.monotonic() + 3 + HELD_UP
    while (used := (await admin.row(id_of(key)))["last_used"]) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert used == pytest.approx(before, abs=10)


async def test_a_use_is_written_once_a_minute(citadel: Instance, client: Client, admin: Holder) -> None:
    key = citadel.key()
    for _ in range(20):
        await client.get(USES, key=key)
    await asyncio.sleep(1.5)
    first = (await admin.row(id_of(key)))["last_used"]
    await client.get(USES, key=key)
    await asyncio.sleep(1.5)
    assert (await admin.row(id_of(key)))["last_used"] == first


async def test_changes_hold_within_a_second(citadel: Instance, client: Client, fleet: Start, model: str) -> None:
    admin, key = Holder(client, citadel.admin_key), citadel.key()
    fleet(model)
    assert (await client.post(chat(model), key=key)).status == 200
    changed = await admin.change(
        id_of(key), f'{{"name": "other", "models": ["{model}-x"], "limits": {{"concurrent": null}}}}'
    )
    row = changed.json()
    assert (row["name"], row["models"]) == ("other", [f"{model}-x"])
    assert row["limits"] == {"requests_per_minute": 0, "tokens_per_minute": None, "concurrent": None}
    await asyncio.sleep(1 + HELD_UP)
    assert (await client.post(chat(model), key=key)).code == "model_not_found"
    assert (await admin.change(id_of(key), '{"models": null}')).json()["models"] is None


async def test_a_revoked_key_is_refused_and_stays_so(citadel: Instance, client: Client, admin: Holder) -> None:
    key = citadel.key()
    assert (await client.get(USES, key=key)).status == 200
    revoked = (await admin.ask("DELETE", id_of(key))).json()["revoked"]
    assert revoked == pytest.approx(time.time(), abs=30)
    deadline = time.monotonic() + 1 + HELD_UP
    while (await client.get(USES, key=key)).status != 401:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (await admin.ask("DELETE", id_of(key))).json()["revoked"] == revoked
    for reply in (await admin.change(id_of(key), "{}"), await admin.ask("POST", id_of(key), verb="/rotate")):
        assert (reply.status, reply.code) == (409, "key_revoked")


async def test_a_rotated_key_keeps_its_id_and_its_old_secret_for_a_while(
    citadel: Instance, client: Client, admin: Holder
) -> None:
    old = citadel.key()
    row = (await admin.ask("POST", id_of(old), b'{"grace": 2}', "/rotate")).json()
    new = row["key"]
    assert (id_of(new), row["key_id"]) == (id_of(old), id_of(old))
    assert row["former_until"] == pytest.approx(time.time() + 2, abs=5)
    assert new != old
    assert (await client.get(USES, key=new)).status == 200
    assert (await client.get(USES, key=old)).status == 200
    await asyncio.sleep(max(0.0, row["former_until"] - time.time()))
    assert (await client.get(USES, key=old)).status == 401
    assert (await client.get(USES, key=new)).status == 200


async def test_both_secrets_share_the_limits_of_the_key(citadel: Instance, client: Client, admin: Holder) -> None:
    old = citadel.key(requests_per_minute=2)
    new = (await admin.ask("POST", id_of(old), verb="/rotate")).json()["key"]
    body = chat("smollm2:135m", max_tokens=1)
    assert [(await client.post(body, key=key)).status for key in (old, new, old, new)] == [200, 200, 429, 429]


async def test_without_grace_the_old_secret_ends_at_once(citadel: Instance, client: Client, admin: Holder) -> None:
    keys = [citadel.key()]
    await client.get(USES, key=keys[0])
    for grace in (3600, 0):
        body = f'{{"grace": {grace}}}'.encode()
        keys.append((await admin.ask("POST", id_of(keys[0]), body, "/rotate")).json()["key"])
    assert (await admin.row(id_of(keys[0])))["former_until"] is None
    await asyncio.sleep(1 + HELD_UP)
    assert [(await client.get(USES, key=key)).status for key in keys] == [401, 401, 200]


async def test_what_expires_is_refused_from_then_on(client: Client, admin: Holder) -> None:
    until = time.time() + 2
    made = await admin.made(expires=until)
    assert made["expires"] == pytest.approx(until, abs=0.001)
    assert (await client.get(USES, key=made["key"])).status == 200
    await asyncio.sleep(max(0.0, until - time.time()) + 0.05)
    assert (await client.get(USES, key=made["key"])).status == 401
    written = await admin.made(expires="2099-01-31T12:00:00+01:00")
    assert written["expires"] == 4073540400.0
    far = await admin.made(expires="2099-01-31T12:00:00+23:59")
    assert far["expires"] == 4073540400.0 - (22 * 60 + 59) * 60


async def test_a_key_is_changed_to_no_end_that_is_over_and_one_that_has_ended_is_changed(
    citadel: Instance, admin: Holder
) -> None:
    key_id = id_of(citadel.key())
    refused = await admin.change(key_id, f'{{"expires": {time.time() - 1}}}')
    assert (refused.status, refused.json()["error"]["param"]) == (400, "expires")
    assert "must lie in the future" in refused.json()["error"]["message"]
    Key.objects.filter(key_id=key_id).update(expires=datetime.now(UTC) - timedelta(days=1))
    assert (await admin.change(key_id, '{"name": "ended"}')).json()["name"] == "ended"
    assert (await admin.change(key_id, f'{{"expires": {LATER.timestamp()}}}')).json()["expires"] == LATER.timestamp()


async def test_a_key_has_but_the_permissions_in_its_scopes(client: Client, admin: Holder) -> None:
    key = (await admin.made(role="operator", scopes=["metrics.see"]))["key"]
    assert (await client.get("/metrics", key=key)).status == 200
    refused = await client.get(USES, key=key)
    assert (refused.status, refused.code) == (403, "forbidden")
    assert "'models.use', which is not among the scopes of this key" in refused.json()["error"]["message"]
    more = (await admin.made(role="developer", scopes=["metrics.see"]))["key"]
    assert (await client.get("/metrics", key=more)).status == 403, "a scope adds nothing to a role"


@pytest.mark.parametrize(
    ("addresses", "status"),
    [(["127.0.0.0/8"], 200), (["10.0.0.0/8", "127.0.0.1"], 200), (["10.0.0.0/8"], 403), (["::1"], 403)],
)
async def test_a_key_is_good_from_its_addresses_alone(
    client: Client, admin: Holder, addresses: list[str], status: int
) -> None:
    key = (await admin.made(addresses=addresses))["key"]
    reply = await client.get(USES, key=key, x_forwarded_for="10.1.1.1")  # which nobody is trusted to say
    assert reply.status == status
    assert reply.code == ("address_not_allowed" if status == 403 else "")


@pytest.mark.parametrize("column", ["scopes", "addresses"])
@pytest.mark.parametrize("value", [5, {"a": 1}, [5], ["nonsense"]])
async def test_a_restriction_that_makes_no_sense_allows_nothing(
    citadel: Instance, client: Client, column: str, value: Any
) -> None:
    key = citadel.key()
    broken = Key.objects.filter(key_id=id_of(key))
    broken.update(**{column: value})
    try:
        citadel.settle()
        assert (await client.get(USES, key=key)).status == 403
        assert (await client.get(USES, key=citadel.key())).status == 200
    finally:
        broken.update(**{column: None})  # other tests would list it; its use may just be written down


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{}", "name"),
        ('{"name": ""}', "name"),
        ('{"name": "a\\u0000"}', "name"),
        ('{"name": "n", "role": "god"}', "role"),
        ('{"name": "n", "role": "scraper"}', "role"),
        ('{"name": "n", "scopes": ["everything"]}', "scopes"),
        ('{"name": "n", "addresses": ["10.0.0.1/8"]}', "addresses"),
        ('{"name": "n", "addresses": ["example.com"]}', "addresses"),
        ('{"name": "n", "models": "x"}', "models"),
        ('{"name": "n", "max_priority": "utmost"}', "max_priority"),
        ('{"name": "n", "limits": {"requests_per_minute": -1}}', "limits.requests_per_minute"),
        ('{"name": "n", "limits": {"requests": 1}}', "limits.requests"),
        ('{"name": "n", "expires": "2099-01-01T00:00:00"}', "expires"),
        ('{"name": "n", "expires": 1e300}', "expires"),
        ('{"name": "n", "expires": 0}', "expires"),
        ('{"name": "n", "expires": "2020-01-31T12:00:00Z"}', "expires"),
        ('{"name": "n", "expires": "9999-12-31T23:59:59-12:00"}', "expires"),
        ('{"name": "n", "expires": "0001-01-01T00:00:00+12:00"}', "expires"),
        ('{"name": "n", "addresses": ["::ffff:10.0.0.0/104"]}', "addresses"),
        ('{"name": "n", "key_id": "mine"}', "key_id"),
    ],
)
async def test_a_bad_field_is_named(client: Client, admin: Holder, body: str, param: str) -> None:
    reply = await client.post(body.encode(), KEYS, key=admin.key)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("end", ["soon", "2099-01-31", "2099-01-31T12:00:00", True])
async def test_of_an_end_that_is_none_is_told_how_one_is_written(admin: Holder, end: Any) -> None:
    error = (await admin.create(expires=end)).json()["error"]
    assert error["param"] == "expires"
    assert error["message"].endswith("; write it like 2030-01-31T12:00:00Z.")


@pytest.mark.parametrize("column", ["scopes", "models", "addresses", "servers"])
async def test_an_empty_list_opens_no_key(client: Client, admin: Holder, column: str) -> None:
    """Whoever has filtered a list down to nothing does not mean all."""
    made = await admin.made(scopes=["models.use"], models=["a"], addresses=["127.0.0.1"], servers=["a"])
    for reply in (await admin.create(**{column: []}), await admin.change(made["key_id"], f'{{"{column}": []}}')):
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (400, "invalid_value", column)
        assert "name some, or send null for all" in error["message"]
    assert (await admin.row(made["key_id"]))[column] == made[column]
    assert (await admin.change(made["key_id"], f'{{"{column}": null}}')).json()[column] is None
    assert (await admin.made(certificates=[]))["certificates"] is None, "which restrict nothing"


async def test_a_team_that_is_not_there_is_named(admin: Holder) -> None:
    reply = await admin.create(team="nobody-s-team")
    assert (reply.status, reply.json()["error"]["param"]) == (404, "team")


async def test_an_owner_manages_the_keys_of_its_team(client: Client, owner: Holder, team: str) -> None:
    made = await owner.made()
    assert (made["team"], made["role"]) == (team, "developer")
    assert (await client.get(USES, key=made["key"])).status == 200
    assert [row["key_id"] for row in (await owner.listed())["data"]] == [made["key_id"], id_of(owner.key)]
    assert (await owner.change(made["key_id"], '{"name": "m"}')).json()["name"] == "m"
    assert well_formed((await owner.ask("POST", made["key_id"], verb="/rotate")).json()["key"].encode())
    assert (await owner.ask("DELETE", made["key_id"])).json()["revoked"]


async def test_another_team_s_key_is_like_none(citadel: Instance, owner: Holder) -> None:
    theirs = id_of(citadel.key())
    absent = secrets.token_hex(5)
    for method, verb in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        replies = [
            await owner.ask(method, key_id, None if method == "GET" else b"{}", verb) for key_id in (theirs, absent)
        ]
        assert {reply.status for reply in replies} == {404}
        assert replies[0].body.replace(theirs.encode(), absent.encode()) == replies[1].body
    [team] = Key.objects.filter(key_id=theirs).values_list("team__slug", flat=True)
    replies = [await owner.create(team=name) for name in (team, "t" * len(team))]
    assert {reply.status for reply in replies} == {404}
    assert replies[0].body.replace(team.encode(), b"t" * len(team)) == replies[1].body
    assert (await owner.listed(f"&team={team}"))["error"]["param"] == "team"


@pytest.mark.parametrize("role", ["admin", "operator", "auditor", "server"])
async def test_nobody_gives_a_role_above_the_own(owner: Holder, role: str) -> None:
    reply = await owner.create(role=role)
    assert (reply.status, reply.code) == (403, "grant_exceeds_own")
    made = await owner.made()
    assert (await owner.change(made["key_id"], f'{{"role": "{role}"}}')).code == "grant_exceeds_own"


async def test_keys_above_the_own_are_not_to_be_had_by_rotation(citadel: Instance, owner: Holder, team: str) -> None:
    above = id_of(citadel.key(team, role="admin"))
    for reply in (
        await owner.ask("POST", above, b"{}", "/rotate"),
        await owner.change(above, '{"name": "x"}'),
        await owner.change(above, '{"role": "developer"}'),
        await owner.ask("DELETE", above),
    ):
        assert reply.status == 403
    assert not Key.objects.get(key_id=above).revoked


@pytest.mark.parametrize(
    ("own", "too_much", "fitting"),
    [
        ({"models": ["a", "b"]}, {"models": ["c"]}, {"models": ["b"]}),
        ({"models": ["a", "b"]}, {}, {"models": ["a:latest"]}),
        ({"addresses": ["127.0.0.0/8"]}, {"addresses": ["127.0.0.1", "10.0.0.0/8"]}, {"addresses": ["127.0.0.1"]}),
        ({"addresses": ["127.0.0.0/8"]}, {}, {"addresses": ["127.0.0.0/8"]}),
        ({"scopes": ["keys.manage"]}, {}, {"role": "owner", "scopes": ["keys.manage"]}),
        ({"requests_per_minute": 5}, {"limits": {"requests_per_minute": 6}}, {"limits": {"requests_per_minute": 5}}),
        ({"requests_per_minute": 5}, {"limits": {"requests_per_minute": 0}}, {"limits": {"requests_per_minute": 1}}),
        (
            {"requests_per_minute": None},
            {"limits": {"requests_per_minute": 61}},
            {"limits": {"tokens_per_minute": 100}},
        ),
        ({"concurrent": 2}, {"limits": {"concurrent": 3}}, {"limits": {"concurrent": 2}}),
        ({"max_priority": "normal"}, {"max_priority": "high"}, {"max_priority": "low"}),
        ({"expires": LATER}, {}, {"expires": LATER.timestamp()}),
        ({"expires": LATER}, {"expires": LATER.timestamp() + 1}, {"expires": LATER.timestamp() - 1}),
    ],
)
async def test_nobody_gives_more_than_the_own(
    citadel: Instance, client: Client, team: str, own: dict[str, Any], too_much: dict[str, Any], fitting: dict[str, Any]
) -> None:
    owner = Holder(client, citadel.key(team, role="owner", **own))
    error = (await owner.create(**too_much)).json()["error"]
    assert error["code"] == "grant_exceeds_own"
    [field] = own or {"scopes": ""}
    assert field in error["message"].rpartition(": ")[2]
    assert "," not in error["message"], "no other field is named"
    assert (await owner.create(**fitting)).status == 200


async def test_all_that_is_more_than_the_own_is_named(citadel: Instance, client: Client, team: str) -> None:
    limits = {"requests_per_minute": 5, "tokens_per_minute": 5, "concurrent": 2}
    owner = Holder(client, citadel.key(team, role="owner", models=["a"], max_priority="low", expires=LATER, **limits))
    told = (await owner.create(role="auditor")).json()["error"]["message"]
    named = "role and scopes, expires, models, limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent"
    assert told == (
        f"A key can't give more than it has. Of the other key these must lie within your own: {named}, max_priority."
    )


@pytest.mark.parametrize(("role", "uses"), [("member", 200), ("viewer", 403)])
async def test_a_member_uses_models_a_viewer_none_and_both_see_and_change_nothing(
    citadel: Instance, client: Client, team: str, role: str, uses: int
) -> None:
    by, other = Holder(client, citadel.key(team, role=role)), id_of(citadel.key(team))
    assert {row["key_id"] for row in (await by.listed())["data"]} == {id_of(by.key), other}
    for reply in (
        await by.create(role=role),
        await by.change(other, "{}"),
        await by.ask("POST", other, b"{}", "/rotate"),
        await by.ask("DELETE", other),
    ):
        assert (reply.status, reply.code) == (403, "forbidden")
    assert (await client.get(USES, key=by.key)).status == uses


async def test_an_owner_gives_each_role_that_may_no_more_and_takes_it_away(
    citadel: Instance, client: Client, team: str, owner: Holder
) -> None:
    for role, uses in (("developer", 200), ("member", 200), ("viewer", 403), ("owner", 200)):
        made = (await owner.create(role=role)).json()
        assert made["role"] == role
        assert (await client.get(USES, key=made["key"])).status == uses
        assert (await owner.ask("DELETE", made["key_id"])).status == 200
    for role in ("admin", "operator", "auditor", "server"):
        assert (await owner.create(role=role)).code == "grant_exceeds_own"
    narrow = Holder(client, citadel.key(team, role="owner", scopes=["keys.manage", "keys.see"]))
    assert (await narrow.create(role="viewer", scopes=["keys.see"])).status == 200
    assert (await narrow.create(role="member")).code == "grant_exceeds_own"


async def test_an_operator_sees_all_keys_and_changes_none(citadel: Instance, client: Client, team: str) -> None:
    operator, other = Holder(client, citadel.key(role="operator")), id_of(citadel.key(team))
    assert [row["key_id"] for row in (await operator.listed(f"&team={team}"))["data"]] == [other]
    assert (await operator.change(other, "{}")).status == 403


async def test_the_list_comes_in_pages_newest_first(
    citadel: Instance, client: Client, team: str, admin: Holder
) -> None:
    made = [id_of(citadel.key(team)) for _ in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        page = (await client.get(f"{KEYS}?team={team}&limit=2{cursor}", key=admin.key)).json()
        found += [row["key_id"] for row in page["data"]]
        cursor = f"&cursor={page['next']}" if page["next"] else None
    assert found == made[::-1]


async def test_two_rotations_at_once_leave_one_key_and_what_was_before_it(
    citadel: Instance, client: Client, admin: Holder
) -> None:
    key = citadel.key()
    replies = await asyncio.gather(*(admin.ask("POST", id_of(key), b"{}", "/rotate") for _ in range(5)))
    keys = [reply.json()["key"] for reply in replies]
    await asyncio.sleep(1 + HELD_UP)
    good = [one for one in (key, *keys) if (await client.get(USES, key=one)).status == 200]
    assert len(good) == 2, "the last, and the one before it"


async def test_of_limits_that_alone_is_changed_which_is_named(citadel: Instance, client: Client, admin: Holder) -> None:
    key_id = id_of(citadel.key(requests_per_minute=5, concurrent=1))
    row = (await admin.change(key_id, '{"limits": {"requests_per_minute": 10}}')).json()
    assert row["limits"] == {"requests_per_minute": 10, "tokens_per_minute": None, "concurrent": 1}


async def test_an_administrator_gives_what_limits_it_likes_but_nothing_that_outlasts_a_token(
    citadel: Instance, client: Client
) -> None:
    key = citadel.key(role="admin", requests_per_minute=5)
    assert (await Holder(client, key).create(limits={"requests_per_minute": 0}, max_priority="critical")).status == 200
    scopes = ["keys.manage", "teams.manage"]
    for asked in ({}, {"scopes": scopes}):
        token = Holder(client, (await client.post(asked, "/api/v1/auth/token", key=key)).json()["access_token"])
        assert (await token.create(role="admin")).code == "grant_exceeds_own"
        assert (await token.ask("POST", id_of(key), b'{"grace": 0}', "/rotate")).code == "grant_exceeds_own"
        soon = time.time() + 60
        assert (await token.create(role="viewer", scopes=scopes, expires=soon)).status == 200


def test_who_was_demoted_or_revoked_or_rotated_a_moment_ago_changes_nothing(citadel: Instance, team: str) -> None:
    """Its worker may not have heard of it yet."""
    from apps.gateway.access.keys import granting, life
    from citadel.errors import CitadelError

    demoted, revoked, rotated = (citadel.key(team, role="owner") for _ in range(3))
    callers = [
        replace(granting._caller(held), digest=bytes(held.digest))
        for held in (Key.objects.get(key_id=id_of(key)) for key in (demoted, revoked, rotated))
    ]
    Key.objects.filter(key_id=id_of(demoted)).update(role="viewer")
    Key.objects.filter(key_id=id_of(revoked)).update(revoked=datetime.now(UTC))
    granting.rotate(callers[2], id_of(rotated), timedelta(hours=1))
    assert granting.change(callers[2], id_of(rotated), {"name": "within its grace"}).name == "within its grace"
    life.rotate(id_of(rotated), timedelta())
    other = id_of(citadel.key(team))
    for by in callers:
        for attempt in (
            lambda by=by: granting.create(by, team, {"name": "n"}),
            lambda by=by: granting.change(by, by.key_id, {"role": "owner"}),
            lambda by=by: granting.rotate(by, other, timedelta()),
            lambda by=by: granting.revoke(by, other),
        ):
            with pytest.raises(CitadelError):
                attempt()
    assert Key.objects.filter(team__slug=team).count() == 4
    assert Key.objects.get(key_id=id_of(demoted)).role == "viewer"
    assert not Key.objects.get(key_id=other).revoked
