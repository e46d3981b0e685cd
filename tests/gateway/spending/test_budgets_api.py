"""`/api/v1/budgets`: an administrator's of all teams, an owner's of the keys of its team, and what was spent."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from apps.gateway.limits.budgets import begins
from apps.gateway.models import Budget, Key, Spend
from citadel.caller import MOST_TOKENS
from citadel.errors import CitadelError
from tests.fleet.control import Fleet
from tests.gateway.client import Client, chat
from tests.gateway.spending.holder import BUDGETS, PRICES, USAGE, Holder, id_of, slug, team_of
from tests.held_up import HELD_UP
from tests.instance import Instance

Start = Callable[..., Fleet]
PERIODS = ("day", "week", "month", "total")


def today() -> date:
    return datetime.now(UTC).date()


def used(holder: str, day: date, tokens: int, money: str) -> None:
    Spend.objects.create(holder=holder, day=day, requests=1, tokens=tokens, money=Decimal(money))


async def test_a_team_s_budget_is_made_seen_and_taken_away(citadel: Instance, admin: Holder, team: str) -> None:
    citadel.key(team)
    made = await admin.made(team=team, period="month", tokens=1000, money="12.50")
    first = today().replace(day=1)
    last = (first + timedelta(days=32)).replace(day=1)
    number = made.pop("id")
    assert made == {
        "team": team,
        "key_id": None,
        "period": "month",
        "tokens": 1000,
        "money": "12.5",
        "spent": {"tokens": 0, "money": "0"},
        "begins": datetime(first.year, first.month, 1, tzinfo=UTC).timestamp(),
        "ends": datetime(last.year, last.month, 1, tzinfo=UTC).timestamp(),
        "created": pytest.approx(time.time(), abs=30),
    }
    assert await admin.row(number) == {"id": number, **made}
    assert await admin.listed(f"&team={team}") == [number]
    changed = (await admin.change(number, '{"money": 0.000000001, "tokens": null}')).json()
    assert changed == {"id": number, **made, "money": "0.000000001", "tokens": None}
    assert (await admin.change(number, "{}")).json() == changed
    assert (await admin.delete(number)).json() == {"status": "deleted", "id": number}
    assert (await admin.delete(number)).status == 404
    assert await admin.listed(f"&team={team}") == []


@pytest.mark.parametrize("period", PERIODS)
async def test_a_period_is_one_of_the_calendar(citadel: Instance, admin: Holder, period: str) -> None:
    row = await admin.made(key_id=id_of(citadel.key()), period=period)
    if period == "total":
        assert (row["begins"], row["ends"]) == (None, None)
        return
    first, after = (datetime.fromtimestamp(row[name], UTC) for name in ("begins", "ends"))
    assert first <= datetime.now(UTC) < after + timedelta(minutes=1)
    for edge in (first, after):
        assert (edge.hour, edge.minute, edge.second) == (0, 0, 0)
        assert period != "week" or edge.isoweekday() == 1
        assert period != "month" or edge.day == 1


async def test_what_was_spent_is_that_of_the_period(citadel: Instance, admin: Holder, team: str) -> None:
    key_id, now = id_of(citadel.key(team)), today()
    days = {now, date(2020, 1, 1), *(begins(period, now) - timedelta(days=1) for period in ("day", "week", "month"))}
    amounts = {day: 10**number for number, day in enumerate(sorted(days))}
    for day, amount in amounts.items():
        used(key_id, day, amount, f"{amount}.000000001")
        used(f"team:{team}", day, amount * 2, "0.1")
        used(f"team:{slug()}", day, 10**9, "100")
    for period in PERIODS:
        within = [amount for day, amount in amounts.items() if day >= begins(period, now)]
        money = sum(within) + len(within) * Decimal("0.000000001")
        row = await admin.made(key_id=key_id, period=period)
        assert row["spent"] == {"tokens": sum(within), "money": str(money)}
        assert (await admin.row(row["id"]))["spent"] == row["spent"]
        row = await admin.made(team=team, period=period)
        assert row["spent"]["tokens"] == sum(within) * 2


async def test_money_is_kept_exactly(citadel: Instance, admin: Holder) -> None:
    key_id = id_of(citadel.key())
    number = (await admin.made(key_id=key_id))["id"]
    for written, told in (
        ('"0.1"', "0.1"),
        ("0.1", "0.1"),
        ("8999999.999999999", "8999999.999999999"),
        ('"0.000000001"', "0.000000001"),
        ("9000000", "9000000"),
        ("0", "0"),
        ("1e3", "1000"),
    ):
        assert (await admin.change(number, f'{{"money": {written}}}')).json()["money"] == told
        assert (await admin.row(number))["money"] == told


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"period": "day"', "tokens"),
        ('"period": "day", "tokens": null, "money": null', "tokens"),
        ('"tokens": 1', "period"),
        ('"tokens": 1, "period": "year"', "period"),
        ('"tokens": 1, "period": 5', "period"),
        ('"tokens": -1, "period": "day"', "tokens"),
        ('"tokens": 1.5, "period": "day"', "tokens"),
        ('"tokens": "1", "period": "day"', "tokens"),
        (f'"tokens": {MOST_TOKENS + 1}, "period": "day"', "tokens"),
        ('"money": "-1", "period": "day"', "money"),
        ('"money": -0.5, "period": "day"', "money"),
        ('"money": "NaN", "period": "day"', "money"),
        ('"money": "1e3", "period": "day"', "money"),
        ('"money": 0.1234567891, "period": "day"', "money"),
        ('"money": "0.1234567891", "period": "day"', "money"),
        ('"money": "9000000.000000001", "period": "day"', "money"),
        ('"money": {}, "period": "day"', "money"),
        ('"money": true, "period": "day"', "money"),
        ('"tokens": 1, "period": "day", "spent": 1', "spent"),
        ('"tokens": 1, "period": "day", "team": "a"', "key_id"),
    ],
)
async def test_a_bad_field_is_named(citadel: Instance, admin: Holder, fields: str, param: str) -> None:
    key_id = id_of(citadel.key())
    reply = await admin.ask("POST", BUDGETS, f'{{"key_id": "{key_id}", {fields}}}')
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, param)
    assert f"'{param}'" in error["message"]
    assert not Budget.objects.filter(key__key_id=key_id).exists()


async def test_of_a_period_that_is_none_are_told_those_that_there_are(citadel: Instance, admin: Holder) -> None:
    reply = await admin.create(key_id=id_of(citadel.key()), period="year")
    assert reply.json()["error"]["message"] == "Invalid value for 'period': it is one of day, week, month, total."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"tokens": null}', "tokens"),
        ('{"tokens": -1}', "tokens"),
        ('{"money": "x"}', "money"),
        ('{"money": 1e-10}', "money"),
        ('{"period": "week"}', "period"),
        ('{"key_id": "x"}', "key_id"),
    ],
)
async def test_a_bad_change_is_named_and_changes_nothing(
    citadel: Instance, admin: Holder, body: str, param: str
) -> None:
    row = await admin.made(key_id=id_of(citadel.key()))
    reply = await admin.change(row["id"], body)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)
    assert await admin.row(row["id"]) == row


async def test_of_whom_it_is_must_be_said(admin: Holder) -> None:
    reply = await admin.create()
    assert (reply.status, reply.json()["error"]["param"]) == (400, "team")
    for field in ("team", "key_id"):
        reply = await admin.create(**{field: "nobody"})
        assert reply.status == 404


async def test_a_second_one_for_the_period_is_refused(citadel: Instance, admin: Holder, team: str) -> None:
    key_id = id_of(citadel.key(team))
    for holder in ({"team": team}, {"key_id": key_id}):
        replies = await asyncio.gather(*(admin.create(**holder) for _ in range(4)))
        assert sorted(reply.status for reply in replies) == [200, 409, 409, 409]
        assert {reply.code for reply in replies if reply.status == 409} == {"budget_exists"}
        await admin.made(**holder, period="week")


@pytest.mark.parametrize(
    ("role", "sees", "team_s", "key_s"),
    [
        ("admin", 200, 200, 200),
        ("operator", 200, 403, 403),
        ("auditor", 200, 403, 403),
        ("owner", 200, 403, 200),
        ("member", 200, 403, 403),
        ("viewer", 200, 403, 403),
        ("developer", 403, 403, 403),
        ("server", 403, 403, 403),
    ],
)
async def test_each_role_in_its_own_team(
    citadel: Instance, client: Client, admin: Holder, team: str, role: str, sees: int, team_s: int, key_s: int
) -> None:
    by, other = Holder(client, citadel.key(team, role=role)), id_of(citadel.key(team))
    for holder, status in (({"team": team}, team_s), ({"key_id": other}, key_s)):
        number = (await admin.made(**holder, period="week"))["id"]
        assert number in await admin.listed(f"&team={team}")
        assert (await by.ask("GET", f"{BUDGETS}/{number}")).status == sees
        assert (await by.change(number, '{"tokens": 5}')).status == status
        assert (await by.delete(number)).status == status
        assert (await by.create(**holder)).status == status
    assert (await by.ask("GET", BUDGETS)).status == sees


@pytest.mark.parametrize(
    ("role", "sees", "does"),
    [
        ("admin", 200, 200),
        ("operator", 200, 403),
        ("auditor", 200, 403),
        ("owner", 404, 404),
        ("member", 404, 403),
        ("viewer", 404, 403),
    ],
)
async def test_each_role_in_another_team(
    citadel: Instance, client: Client, admin: Holder, team: str, role: str, sees: int, does: int
) -> None:
    by, other = Holder(client, citadel.key(role=role)), id_of(citadel.key(team))
    numbers = [(await admin.made(**holder))["id"] for holder in ({"team": team}, {"key_id": other})]
    for query in (f"?team={team}", f"?key_id={other}"):
        assert (await by.ask("GET", BUDGETS + query)).status == sees
    for number in numbers:
        assert (await by.ask("GET", f"{BUDGETS}/{number}")).status == sees
        assert (await by.change(number, '{"tokens": 5}')).status == does
        assert (await by.delete(number)).status == does
    for holder in ({"team": team}, {"key_id": other}):
        assert (await by.create(**holder, period="total")).status == does
    if sees == 404:
        assert not {*numbers} & {*await by.listed()}


async def test_another_team_s_is_like_none(citadel: Instance, admin: Holder, owner: Holder) -> None:
    theirs = citadel.key()
    number = (await admin.made(key_id=id_of(theirs)))["id"]
    absent = number + 10**9
    for method, body in (("GET", None), ("PATCH", "{}"), ("DELETE", "")):
        replies = [await owner.ask(method, f"{BUDGETS}/{one}", body) for one in (number, absent)]
        assert {reply.status for reply in replies} == {404}
        assert replies[0].body.replace(str(number).encode(), str(absent).encode()) == replies[1].body
    for name, value in (("key_id", id_of(theirs)), ("team", team_of(theirs))):
        nobody = "x" * len(value)
        asked = [await owner.create(**{name: one}) for one in (value, nobody)]
        listed = [await owner.ask("GET", f"{BUDGETS}?{name}={one}") for one in (value, nobody)]
        for replies in (asked, listed):
            assert {reply.status for reply in replies} == {404}
            assert replies[0].body.replace(value.encode(), nobody.encode()) == replies[1].body


@pytest.mark.parametrize("number", ["nothing", "0", "-1", "1.5", "9" * 18, "9" * 40, "%D9%A1", "1%00", "%20"])
async def test_what_is_no_number_of_one_is_not_found(admin: Holder, number: str) -> None:
    for method, body in (("GET", None), ("PATCH", '{"tokens": 1}'), ("DELETE", "")):
        reply = await admin.ask(method, f"{BUDGETS}/{number}", body)
        assert (reply.status, reply.code) == (404, "not_found")


async def test_an_owner_sets_those_of_its_team_s_other_keys(citadel: Instance, owner: Holder, team: str) -> None:
    key_id = id_of(citadel.key(team))
    row = await owner.made(key_id=key_id, money="5")
    assert (await owner.change(row["id"], '{"tokens": 11}')).json()["tokens"] == 11
    assert (await owner.delete(row["id"])).status == 200


async def test_nobody_sets_those_of_the_own_key(
    citadel: Instance, client: Client, admin: Holder, owner: Holder
) -> None:
    number = (await admin.made(key_id=owner.key_id))["id"]
    token = (await client.post({}, "/api/v1/auth/token", key=owner.key)).json()["access_token"]
    for reply in (
        await owner.create(key_id=owner.key_id, period="week"),
        await owner.change(number, '{"tokens": 1000}'),
        await owner.delete(number),
    ):
        assert (reply.status, reply.code) == (403, "forbidden")
    for method, path, body in (
        ("PATCH", f"{BUDGETS}/{number}", b'{"tokens": 1000}'),
        ("DELETE", f"{BUDGETS}/{number}", b""),
    ):
        assert (await client.ask(method, path, data=body, key=token)).code == "forbidden"
    assert (await admin.row(number))["tokens"] == 10
    other = Holder(client, citadel.key(team_of(owner.key), role="owner"))
    assert (await other.change(number, '{"tokens": 1000}')).status == 200


async def test_nobody_sets_those_of_a_key_that_may_more(
    citadel: Instance, admin: Holder, owner: Holder, team: str
) -> None:
    above = id_of(citadel.key(team, role="admin"))
    number = (await admin.made(key_id=above))["id"]
    for reply in (
        await owner.create(key_id=above, period="week"),
        await owner.change(number, '{"tokens": 0}'),
        await owner.delete(number),
    ):
        assert (reply.status, reply.code) == (403, "forbidden")


async def test_nobody_gives_another_key_more_than_the_own_has(
    citadel: Instance, admin: Holder, owner: Holder, team: str
) -> None:
    old = id_of(citadel.key(team))
    number = (await owner.made(key_id=old, tokens=100))["id"]
    own = (await admin.made(key_id=owner.key_id, tokens=10, money="1"))["id"]
    for body in ('{"tokens": 11, "money": 1}', '{"tokens": 10}', '{"money": 1.000000001, "tokens": 1}'):
        assert (await owner.change(number, body)).code == "grant_exceeds_own"
    assert (await owner.change(number, '{"tokens": 10, "money": "0.5"}')).status == 200
    assert (await owner.delete(number)).code == "grant_exceeds_own"
    assert (await owner.create(key_id=old, period="week", tokens=10**9)).status == 200, "the day bounds it"
    unbounded = id_of(citadel.key(team))
    for verb, body in (("PATCH", '{"name": "m"}'), ("POST", "")):
        path = f"/api/v1/keys/{unbounded}" + ("/rotate" if verb == "POST" else "")
        assert (await owner.ask(verb, path, body)).code == "grant_exceeds_own", "its secret would spend more"
    await admin.delete(own)
    assert (await owner.ask("PATCH", f"/api/v1/keys/{unbounded}", '{"name": "m"}')).status == 200


async def test_who_has_one_makes_no_keys(
    citadel: Instance, client: Client, admin: Holder, owner: Holder, team: str
) -> None:
    """Each would have as much to spend once again; a team's budget is the same for all its keys."""
    await admin.made(team=team)
    assert (await client.post({"name": "n"}, "/api/v1/keys", key=owner.key)).status == 200
    own = await admin.made(key_id=owner.key_id, tokens=10**9)
    token = (await client.post({}, "/api/v1/auth/token", key=owner.key)).json()["access_token"]
    for key in (owner.key, token):
        refused = await client.post({"name": "n"}, "/api/v1/keys", key=key)
        assert (refused.status, refused.code) == (403, "grant_exceeds_own")
        assert "budget" in refused.json()["error"]["message"]
    by_admin = await client.post({"name": "n", "team": team}, "/api/v1/keys", key=admin.key)
    assert by_admin.status == 200
    await admin.delete(own["id"])
    assert (await client.post({"name": "n"}, "/api/v1/keys", key=owner.key)).status == 200


async def test_those_of_a_revoked_key_stay_as_they_are(citadel: Instance, admin: Holder) -> None:
    key_id = id_of(citadel.key())
    number = (await admin.made(key_id=key_id))["id"]
    await admin.ask("DELETE", f"/api/v1/keys/{key_id}", "")
    for reply in (
        await admin.change(number, '{"tokens": 1}'),
        await admin.delete(number),
        await admin.create(key_id=key_id, period="week"),
    ):
        assert (reply.status, reply.code) == (409, "key_revoked")
    assert await admin.listed(f"&key_id={key_id}") == [number]


async def test_scopes_are_kept_to(citadel: Instance, client: Client, team: str) -> None:
    key_id = id_of(citadel.key(team))
    teams = Holder(client, citadel.key(role="admin", scopes=["teams.manage"]))
    seeing = Holder(client, citadel.key(role="admin", scopes=["keys.see"]))
    assert (await teams.create(team=team)).status == 200
    assert (await seeing.create(team=team, period="week")).status == 403
    assert (await seeing.create(key_id=key_id)).status == 403
    assert len(await seeing.listed(f"&team={team}")) == 1


async def test_the_list_comes_in_pages_newest_first(citadel: Instance, admin: Holder, team: str) -> None:
    keys = [id_of(citadel.key(team)) for _ in range(2)]
    made = [(await admin.made(key_id=key, period=period))["id"] for key in keys for period in PERIODS]
    made.append((await admin.made(team=team))["id"])
    found: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await admin.ask("GET", f"{BUDGETS}?team={team}&limit=2{cursor}")).json()
        found += [row["id"] for row in page["data"]]
        cursor = f"&cursor={page['next']}" if page["next"] else None
    assert found == made[::-1]
    assert await admin.listed(f"&key_id={keys[0]}") == made[:4][::-1]
    for query in ("limit=0", "limit=1001", "cursor=x"):
        assert (await admin.ask("GET", f"{BUDGETS}?{query}")).status == 400


async def test_what_a_request_costs_is_counted_to_the_last_digit(
    citadel: Instance, client: Client, fleet: Start, model: str, admin: Holder, team: str
) -> None:
    fleet(model)
    key = citadel.key(team)
    assert (await admin.ask("PUT", f"{PRICES}/{model}", '{"prompt": 0.7, "completion": "1.000000001"}')).status == 200
    numbers = [
        (await admin.made(**holder, tokens=None, money="1"))["id"]
        for holder in ({"team": team}, {"key_id": id_of(key)})
    ]
    citadel.settle()
    usage = (await client.post(chat(model), key=key)).json()["usage"]
    exact = (usage["prompt_tokens"] * 700_000_000 + usage["completion_tokens"] * 1_000_000_001) / Decimal(10**6)
    cost = Decimal(exact).to_integral_value(rounding="ROUND_CEILING") / 10**9
    deadline = time.monotonic() + 3 + HELD_UP
    while (spent := (await admin.row(numbers[0]))["spent"])["tokens"] == 0:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert spent["tokens"] == usage["total_tokens"]
    assert Decimal(spent["money"]) == cost
    assert (await admin.row(numbers[1]))["spent"] == spent
    for query in (f"team={team}", f"key_id={id_of(key)}"):
        told = (await admin.ask("GET", f"{USAGE}?{query}")).json()
        assert told["total"] == {"requests": 1, **spent}
    await admin.ask("DELETE", f"{PRICES}/{model}", "")


async def test_nothing_more_is_let_in_where_a_budget_is_spent(
    citadel: Instance, client: Client, fleet: Start, model: str, admin: Holder
) -> None:
    fleet(model)
    key = citadel.key()
    number = (await admin.made(key_id=id_of(key), tokens=0))["id"]
    citadel.settle()
    refused = await client.post(chat(model), key=key)
    assert (refused.status, refused.code) == (429, "budget_exceeded")
    await admin.delete(number)
    citadel.settle()
    assert (await client.post(chat(model), key=key)).status == 200


def test_who_was_demoted_or_revoked_a_moment_ago_changes_nothing(citadel: Instance, team: str) -> None:
    """Its worker may not have heard of it yet."""
    from apps.gateway.access.keys import granting as keys
    from apps.gateway.spending import granting

    demoted, revoked = citadel.key(team, role="owner"), citadel.key(team, role="owner")
    other = Key.objects.get(key_id=id_of(citadel.key(team)))
    budget = Budget.objects.create(key=other, period="day", tokens=10)
    callers = [keys._caller(Key.objects.get(key_id=id_of(key))) for key in (demoted, revoked)]
    Key.objects.filter(key_id=id_of(demoted)).update(role="viewer")
    Key.objects.filter(key_id=id_of(revoked)).update(revoked=datetime.now(UTC))
    attempts: list[Callable[[Any], Any]] = [
        lambda by: granting.create(by, None, other.key_id, "week", {"tokens": 1}),
        lambda by: granting.create(by, team, None, "week", {"tokens": 1}),
        lambda by: granting.change(by, str(budget.pk), {"tokens": 1}),
        lambda by: granting.delete(by, str(budget.pk)),
    ]
    for by in callers:
        for attempt in attempts:
            with pytest.raises(CitadelError):
                attempt(by)
    assert [row.tokens for row in Budget.objects.filter(key__team__slug=team)] == [10]
