"""`GET /orchestration/events`: newest first, filtered, in pages; what makes no sense is a 400 that names it."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg
import pytest

from tests.instance import Instance

PATH = "/orchestration/events"
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=2)
"""Lately: who prunes old events may come by at any time."""


@pytest.fixture
async def operator(citadel: Instance) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {citadel.key(role='operator')}"}
    async with aiohttp.ClientSession(citadel.url, headers=headers) as session:
        yield session


@pytest.fixture
def server_id(citadel: Instance) -> str:
    """A server that ten events tell of, an hour apart from noon on, drained and enabled by turns."""
    name = f"e-{secrets.token_hex(4)}"
    with psycopg.connect(citadel.database_url) as connection:
        for hour in range(10):
            kind = "server_enabled" if hour % 2 else "server_drained"
            connection.execute(
                "INSERT INTO orchestration_event (type, server_id, at, data) "
                "VALUES (%s, %s, %s, jsonb_build_object('hour', %s::int))",
                (kind, name, NOON + timedelta(hours=hour), hour),
            )
    return name


async def ask(session: aiohttp.ClientSession, **query: Any) -> Any:
    async with session.get(PATH, params={name: str(value) for name, value in query.items()}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def hours(answer: Any) -> list[int]:
    return [event["data"]["hour"] for event in answer["events"]]


def _at(hour: int) -> str:
    return f"{NOON + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"


async def test_the_newest_first_in_pages(operator: aiohttp.ClientSession, server_id: str) -> None:
    first = await ask(operator, server_id=server_id, limit=4)
    second = await ask(operator, server_id=server_id, limit=4, cursor=first["next"])
    third = await ask(operator, server_id=server_id, limit=4, cursor=second["next"])
    assert [hours(page) for page in (first, second, third)] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
    assert third["next"] is None
    assert (await ask(operator, server_id=server_id, limit=10))["next"] is None
    event = first["events"][0]
    assert event.keys() == {"id", "type", "server_id", "at", "data"}
    assert (event["type"], event["server_id"], event["at"]) == ("server_enabled", server_id, _at(9))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"type": "server_drained"}, [8, 6, 4, 2, 0]),
        ({"type": "server_drained,server_enabled", "limit": 2}, [9, 8]),
        ({"type": "server_departed"}, []),
        ({"since": _at(7)}, [9, 8, 7]),
        ({"since": f"{NOON:%Y-%m-%d}T20:00:00+01:00"}, [9, 8, 7]),
        ({"since": _at(7).removesuffix("Z")}, [9, 8, 7]),
        ({"since": (NOON + timedelta(hours=9)).timestamp()}, [9]),
        ({"since": f"{NOON + timedelta(days=1):%Y-%m-%d}"}, []),
        ({"since": "99999999999999999999"}, []),
        ({"type": "server_enabled", "since": _at(6)}, [9, 7]),
        ({"unknown": "1"}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
async def test_filters(
    operator: aiohttp.ClientSession, server_id: str, query: dict[str, Any], found: list[int]
) -> None:
    assert hours(await ask(operator, server_id=server_id, **query)) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "-1", "1001", "ten", "1.5", "²", "1" * 400)),
        *(("cursor", value) for value in ("0", "-1", "abc", "9223372036854775808", "1" * 5000)),
        *(("since", value) for value in ("yesterday", "2026-13-01", "-5", "1e5", "nan", "10000-01-01T00:00:00Z")),
        *(("since", value) for value in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")),
        *(("type", value) for value in ("nonsense", "server_drained,nonsense", "server_drained,")),
        *((name, "") for name in ("limit", "cursor", "since", "type")),
        *(("server_id", value) for value in ("x" * 65, "a\0b")),
    ],
)
async def test_what_makes_no_sense_is_named(operator: aiohttp.ClientSession, name: str, value: str) -> None:
    async with operator.get(PATH, params={name: value}) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["param"], error["type"]) == (400, name, "invalid_request_error")


@pytest.mark.parametrize(("role", "status"), [("admin", 200), ("operator", 200), ("auditor", 200), ("developer", 403)])
async def test_who_may_see_them(citadel: Instance, http: aiohttp.ClientSession, role: str, status: int) -> None:
    async with http.get(PATH, headers={"authorization": f"Bearer {citadel.key(role=role)}"}) as answer:
        assert answer.status == status
    async with http.get(PATH, headers={"authorization": ""}) as answer:
        assert answer.status == 401
