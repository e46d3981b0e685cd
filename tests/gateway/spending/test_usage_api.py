"""`/api/v1/usage`: day by day, for who sees the team."""

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from apps.gateway.models import Spend
from tests.gateway.client import Client
from tests.gateway.spending.holder import USAGE, Holder, id_of, team_of
from tests.instance import Instance

FIRST = date(2026, 1, 30)


@pytest.fixture
def key(citadel: Instance, team: str) -> str:
    """A key of the team; it and its team have used something on five days."""
    key = citadel.key(team)
    for holder in (f"team:{team}", id_of(key)):
        for number in range(5):
            Spend.objects.create(
                holder=holder,
                day=FIRST + timedelta(days=number),
                requests=1,
                tokens=10 ** (17 - number),
                money=Decimal("100000000000000.000000001"),
            )
    return key


def days(rows: list[dict[str, Any]]) -> list[str]:
    return [row["day"] for row in rows]


async def test_a_team_s_and_a_key_s_days(admin: Holder, team: str, key: str) -> None:
    for query, named in ((f"team={team}", (team, None)), (f"key_id={id_of(key)}", (None, id_of(key)))):
        told = (await admin.ask("GET", f"{USAGE}?{query}")).json()
        assert days(told["data"]) == ["2026-02-03", "2026-02-02", "2026-02-01", "2026-01-31", "2026-01-30"]
        assert told["data"][-1] == {
            "day": "2026-01-30",
            "team": named[0],
            "key_id": named[1],
            "requests": 1,
            "tokens": 10**17,
            "money": "100000000000000.000000001",
        }
        assert told["total"] == {"requests": 5, "tokens": 111110000000000000, "money": "500000000000000.000000005"}
        assert told["next"] is None


@pytest.mark.parametrize(
    ("query", "first", "last", "count"),
    [
        ("since=2026-02-01", "2026-02-01", "2026-02-03", 3),
        ("until=2026-01-31", "2026-01-30", "2026-01-31", 2),
        ("since=2026-01-31&until=2026-01-31", "2026-01-31", "2026-01-31", 1),
        ("since=0001-01-01&until=9999-12-31", "2026-01-30", "2026-02-03", 5),
    ],
)
async def test_both_ends_are_among_what_is_asked_for(
    admin: Holder, team: str, key: str, query: str, first: str, last: str, count: int
) -> None:
    told = (await admin.ask("GET", f"{USAGE}?team={team}&{query}")).json()
    assert (told["data"][-1]["day"], told["data"][0]["day"]) == (first, last)
    assert (len(told["data"]), told["total"]["requests"]) == (count, count)


async def test_pages_have_the_total_of_all(admin: Holder, team: str, key: str) -> None:
    found, cursor = [], ""
    while cursor is not None:
        page = (await admin.ask("GET", f"{USAGE}?team={team}&limit=2{cursor}")).json()
        found += days(page["data"])
        assert page["total"]["requests"] == 5
        cursor = f"&cursor={page['next']}" if page["next"] else None
    assert found == sorted(set(found), reverse=True)
    assert len(found) == 5
    for cursor in ("0", "9" * 18):
        told = (await admin.ask("GET", f"{USAGE}?team={team}&cursor={cursor}")).json()
        assert len(told["data"]) == (5 if cursor != "0" else 0)


async def test_where_nothing_was_used_there_is_nothing(owner: Holder) -> None:
    told = (await owner.ask("GET", USAGE)).json()
    assert told == {"total": {"requests": 0, "tokens": 0, "money": "0"}, "data": [], "next": None}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=yesterday", "since"),
        ("since=2026-02-30", "since"),
        ("until=0000-01-01", "until"),
        ("until=20260101", "until"),
        ("until=2026-01-01T00:00:00Z", "until"),
        ("since=2026-02-02&until=2026-02-01", "since"),
        ("team=a&key_id=b", "key_id"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
    ],
)
async def test_a_bad_value_is_named(admin: Holder, query: str, param: str) -> None:
    reply = await admin.ask("GET", f"{USAGE}?{query}")
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("role", "own", "other"),
    [
        ("admin", 200, 200),
        ("operator", 200, 200),
        ("auditor", 200, 200),
        ("owner", 200, 404),
        ("member", 200, 404),
        ("viewer", 200, 404),
        ("developer", 403, 403),
        ("server", 403, 403),
    ],
)
async def test_who_sees_what(
    citadel: Instance, client: Client, team: str, key: str, role: str, own: int, other: int
) -> None:
    inside, outside = (Holder(client, citadel.key(slug, role=role)) for slug in (team, None))
    for query in ("", f"?team={team}", f"?key_id={id_of(key)}"):
        assert (await inside.ask("GET", USAGE + query)).status == own
        if query:
            assert (await outside.ask("GET", USAGE + query)).status == other


async def test_another_team_s_is_like_none(citadel: Instance, owner: Holder) -> None:
    theirs = citadel.key()
    for name, value in (("key_id", id_of(theirs)), ("team", team_of(theirs))):
        nobody = "x" * len(value)
        replies = [await owner.ask("GET", f"{USAGE}?{name}={one}") for one in (value, nobody)]
        assert {reply.status for reply in replies} == {404}
        assert replies[0].body.replace(value.encode(), nobody.encode()) == replies[1].body
