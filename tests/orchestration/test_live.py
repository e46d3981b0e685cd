"""Who may see the fleet watches it over `/ws/console`; whoever may not is told so before there is a socket."""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client as Browser

from apps.orchestration.consumers import MOST_OF_ONE
from apps.orchestration.messages import Drained, Enabled, Rebalanced
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.socket import ASKING, Socket, ready, refused, watching


def happen(server_id: str, count: int = 1) -> None:
    """Events of a server, drained and enabled by turns."""
    from apps.orchestration.events import tell_now

    for number in range(count):
        tell_now(server_id, (Enabled if number % 2 else Drained)("draining", "active", str(number)))


@pytest.fixture
def server_id() -> str:
    return f"s-{secrets.token_hex(4)}"


async def test_the_fleet_is_told_and_then_each_change(
    citadel: Instance, fleet: Callable[..., Fleet], model: str
) -> None:
    from apps.orchestration.registry import set_state

    there = fleet(model).server_id
    async with watching(citadel) as socket:
        first = await socket.next()
        assert (first["type"], first["more"]) == ("snapshot", False)
        [row] = [one for one in first["servers"] if one["server_id"] == there]
        assert (row["state"], row["health_status"]) == ("active", "healthy")
        await ready(socket)
        set_state(there, "draining", "somebody")
        status, event = None, None
        while not (status and event):
            message = await socket.until(lambda m: m.get("server_id") == there)
            if message["type"] == "server_status":
                status = message
            else:
                event = message
        assert status["state"] == "draining"
        assert (event["type"], event["data"]["by"]) == ("server_drained", "somebody")
        citadel.remove(there)
        assert await socket.until(lambda m: m == {"type": "server_gone", "server_id": there})


async def test_what_was_missed_is_told_by_id_once_and_in_order(citadel: Instance, server_id: str) -> None:
    async with watching(citadel) as socket:
        await ready(socket)
        happen(server_id)
        [seen] = await socket.events(server_id, 1)
    happen(server_id, 450)
    async with watching(citadel, query=f"?since={seen['id']}") as socket:
        assert (await ready(socket))["since"] == seen["id"]
        missed = await socket.events(server_id, 450)
        happen(server_id)
        [live] = await socket.events(server_id, 1)
    assert [one["data"]["by"] for one in missed] == [str(number) for number in range(450)]
    ids = [one["id"] for one in (seen, *missed, live)]
    assert ids == sorted(set(ids))


async def test_an_event_that_no_message_holds_is_named(citadel: Instance, server_id: str) -> None:
    from apps.orchestration.events import tell_now

    async with watching(citadel) as socket:
        await ready(socket)
        tell_now(server_id, Rebalanced("failover", {f"model-{n}": {"x" * 60: 1.0} for n in range(2000)}))
        [named] = await socket.events(server_id, 1)
        assert (named["type"], named["event"]) == ("event_too_large", "cluster_rebalanced")


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        ({}, (401, "invalid_api_key")),
        ({"authorization": "Bearer nonsense"}, (401, "invalid_api_key")),
        ({"x-api-key": "nonsense"}, (401, "invalid_api_key")),
        ({"cookie": "sessionid=nonsense"}, (403, "foreign_origin")),
        ({"cookie": "sessionid=nonsense", "origin": "{own}"}, (401, "invalid_api_key")),
        ({"cookie": "sessionid=\x01;;=", "origin": "{own}"}, (401, "invalid_api_key")),
    ],
)
async def test_who_proves_nothing_gets_no_socket(
    citadel: Instance, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    given = {name: value.replace("{own}", citadel.url).replace("\x01", "") for name, value in headers.items()}
    assert await refused(citadel, given) == refusal


async def test_a_key_needs_the_permission(citadel: Instance) -> None:
    assert await refused(citadel, {"authorization": f"Bearer {citadel.key()}"}) == (403, "forbidden")
    async with watching(citadel, headers={"x-api-key": citadel.key(role="auditor")}) as socket:
        assert (await socket.next())["type"] == "snapshot"


async def test_there_is_no_other_socket_and_no_page_here(citadel: Instance) -> None:
    key = {"authorization": f"Bearer {citadel.admin_key}"}
    assert await refused(citadel, key, "/ws/nothing") == (404, "not_found")
    for since in ("-1", "x", "", "1.5", "%FF", "²", "9" * 19, "1" * 5000, "1" + "&a=1" * 20):
        assert await refused(citadel, key, f"/ws/console?since={since}") == (400, "invalid_value")


async def test_who_wants_no_socket_is_told_what_is_spoken_here(citadel: Instance, http: aiohttp.ClientSession) -> None:
    async with http.get("/ws/console") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "websocket_expected")
    async with http.get("/ws/console", headers={**ASKING, "content-length": "2"}, data=b"{}") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "websocket_expected")


async def test_a_request_that_is_too_large_is_answered(citadel: Instance, http: aiohttp.ClientSession) -> None:
    many = {f"x-{number}": "x" for number in range(200)}
    for query, headers in (("", {"x-long": "x" * 170_000}), (f"?a={'x' * 170_000}", {}), ("", many)):
        async with http.get(f"/ws/console{query}", headers={**ASKING, **headers}) as answer:
            assert answer.status == 431


async def test_a_client_has_little_to_say(citadel: Instance) -> None:
    async with watching(citadel) as socket:
        await ready(socket)
        for _ in range(100):
            await socket.link.send_str("x" * 65_536)
        happen("s-said")
        await socket.events("s-said", 1)
        await socket.link.send_bytes(b"x" * 65_537)
        assert await socket.closed() == 1009


async def test_other_addresses_answer_whoever_would_rather_have_a_socket(citadel: Instance) -> None:
    assert await refused(citadel, {}, "/orchestration/events") == (401, "invalid_api_key")


@pytest.fixture
def browser(citadel: Instance) -> Iterator[Browser]:
    """Somebody who is logged in to the console, and may nothing there yet."""
    user = get_user_model().objects.create_user(f"staff-{secrets.token_hex(4)}", password="p", is_staff=True)
    browser = Browser()
    browser.force_login(user)
    browser.user = user  # type: ignore[attr-defined]
    yield browser
    user.delete()


def cookie_of(browser: Browser) -> str:
    return f"sessionid={browser.cookies['sessionid'].value}"


def allow(browser: Browser) -> None:
    for name in ("view_server", "view_event"):
        browser.user.user_permissions.add(Permission.objects.get(codename=name))  # type: ignore[attr-defined]


async def test_the_consoles_session_is_enough_for_its_own_pages(citadel: Instance, browser: Browser) -> None:
    cookie = cookie_of(browser)
    assert await refused(citadel, {"cookie": cookie, "origin": citadel.url}) == (403, "forbidden")
    allow(browser)
    async with watching(citadel, headers={"cookie": cookie, "origin": citadel.url}) as socket:
        assert (await socket.next())["type"] == "snapshot"
    own = citadel.url.removeprefix("http://")
    foreign = ("https://evil.example", f"https://{own}", f"http://{own}.evil.example", f"http://{own}0", "null", "")
    for origin in foreign:
        assert await refused(citadel, {"cookie": cookie, "origin": origin}) == (403, "foreign_origin")
    browser.user.is_staff = False  # type: ignore[attr-defined]
    browser.user.save()  # type: ignore[attr-defined]
    assert await refused(citadel, {"cookie": cookie, "origin": citadel.url}) == (403, "forbidden")
    browser.logout()
    assert await refused(citadel, {"cookie": cookie, "origin": citadel.url}) == (401, "invalid_api_key")


async def test_a_key_that_is_revoked_closes_its_socket(citadel: Instance) -> None:
    from apps.gateway.models import Key

    key = citadel.key(role="operator")
    async with watching(citadel, key=key) as socket:
        await ready(socket)
        Key.objects.filter(key_id=key.split("_")[1]).update(revoked=datetime.now(UTC) - timedelta(seconds=1))
        assert await socket.closed() == 1008


async def test_a_key_has_its_part_of_the_room_and_others_have_theirs(citadel: Instance) -> None:
    own, other = ({"authorization": f"Bearer {citadel.key(role='auditor')}"} for _ in range(2))
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(watching(citadel, headers=own)) for _ in range(MOST_OF_ONE)]
        assert await refused(citadel, own) == (429, "too_many_own_sockets")
        async with watching(citadel, headers=other) as socket:
            assert (await socket.next())["type"] == "snapshot"
        await sockets[0].link.close()
        await until_admitted(citadel, own)


async def test_so_has_a_person_by_all_sessions_together(citadel: Instance, browser: Browser) -> None:
    allow(browser)
    again = Browser()
    again.force_login(browser.user)  # type: ignore[attr-defined]
    sessions = [{"cookie": cookie_of(one), "origin": citadel.url} for one in (browser, again)]
    async with AsyncExitStack() as stack:
        for number in range(MOST_OF_ONE):
            await stack.enter_async_context(watching(citadel, headers=sessions[number % 2]))
        for session in sessions:
            assert await refused(citadel, session) == (429, "too_many_own_sockets")
    await until_admitted(citadel, sessions[0])


async def until_admitted(citadel: Instance, headers: dict[str, str]) -> None:
    """A socket is given back when the worker has heard that it is closed."""
    async with asyncio.timeout(5 + HELD_UP):
        while True:
            try:
                async with watching(citadel, headers=headers):
                    return
            except aiohttp.WSServerHandshakeError:
                await asyncio.sleep(0.1)


async def test_a_lost_ear_is_told_and_mended(citadel: Instance, server_id: str) -> None:
    async with watching(citadel) as socket:
        await ready(socket)
        happen(server_id)
        [first] = await socket.events(server_id, 1)
        with psycopg.connect(citadel.database_url, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'citadel-events'"
            ).fetchall()
        assert ended
        happen(server_id)
        await socket.until(lambda m: m == {"type": "events_live", "live": False})
        [missed] = await socket.events(server_id, 1)
        happen(server_id)
        [live] = await socket.events(server_id, 1)
        assert first["id"] < missed["id"] < live["id"]


async def test_without_watchers_nobody_listens(citadel: Instance) -> None:
    async with watching(citadel) as socket:
        await ready(socket)
        assert listening(citadel) == 1
    await gone(socket, citadel)


async def gone(socket: Socket, citadel: Instance) -> None:
    for _ in range(50):
        if not listening(citadel):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("somebody still listens")


def listening(citadel: Instance) -> int:
    with psycopg.connect(citadel.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'citadel-events'"
        ).fetchone()
    return row[0] if row else 0
