"""Events to subscribers: signed, sent until they are taken, given up and replayed; nowhere that is not allowed."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.webhooks.outgoing import LONGEST_WAIT, pause
from citadel.errors import NotFound
from tests.forbidden_addresses import NEVER, URLS
from tests.gateway.client import Client
from tests.held_up import HELD_UP
from tests.instance import Instance
from tests.orchestration.webhooks.receiver import Receiver

PATH = "/orchestration/webhooks"
Subscribe = Callable[..., Awaitable[dict[str, Any]]]


@asynccontextmanager
async def subscribed(client: Client, key: str, url: str, **more: Any) -> AsyncIterator[dict[str, Any]]:
    """A new subscription, as the API gives it; unless said, to events of a `kind` that nobody else raises."""
    from apps.orchestration.models import Subscription

    made = await client.post({"url": url, "events": ["server_departed"], **more}, PATH, key=key)
    assert made.status == 200, made.body
    kind = f"event-{secrets.token_hex(4)}"
    if "events" not in more:
        Subscription.objects.filter(subscription_id=made.json()["id"]).update(events=[kind])
    try:
        yield {**made.json(), "kind": kind}
    finally:
        await client.ask("DELETE", f"{PATH}/{made.json()['id']}", key=key)


def happen(kind: str, server: str = "") -> str:
    """Raises an event, unless said of a server that nobody else speaks of; gives the server's id."""
    from apps.orchestration.models import Event

    server = server or f"s-{secrets.token_hex(4)}"
    Event.objects.create(type=kind, server_id=server, at=datetime.now(UTC), data={"shares": {"a": 1}})
    return server


async def row_of(client: Client, key: str, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{PATH}/{identity}", key=key)).json()
    return found


async def deliveries(client: Client, key: str, identity: str, state: str = "") -> list[dict[str, Any]]:
    query = f"?state={state}" if state else ""
    rows: list[dict[str, Any]] = (await client.get(f"{PATH}/{identity}/deliveries{query}", key=key)).json()["data"]
    return rows


async def until_state(client: Client, key: str, identity: str, state: str, count: int = 1) -> list[dict[str, Any]]:
    for _ in range(300):
        if len(found := await deliveries(client, key, identity, state)) >= count:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(await deliveries(client, key, identity))


@pytest.mark.usefixtures("sending")
async def test_a_subscriber_gets_events_signed(citadel: Instance, client: Client, server: str) -> None:
    """Of the types it wants alone, in the form that GET /orchestration/events has."""
    key = citadel.key(role="operator")
    async with (
        Receiver.running() as receiver,
        subscribed(client, key, receiver.url, events=["server_drained"]) as made,
    ):
        happen("cluster_rebalanced", server)
        happen("server_drained", server)
        [got] = await receiver.until(lambda got: [one for one in got if one.json["server_id"] == server])
        assert got.signed_by(made["secret"])
        assert (got.json["type"], got.json["server_id"], got.json["data"]) == (
            "server_drained",
            server,
            {"shares": {"a": 1}},
        )
        assert {"id", "at", "timestamp"} <= set(got.json)
        rows = await until_state(client, key, made["id"], "delivered")
        assert (1, 204, got.identity) in {(row["attempts"], row["last_status"], row["message_id"]) for row in rows}
        assert "secret" not in await row_of(client, key, made["id"])


@pytest.mark.usefixtures("sending")
async def test_it_fails_five_times_and_gets_it_at_last(citadel: Instance, client: Client) -> None:
    key = citadel.admin_key
    async with Receiver.running(500, 503, 404, 302, 429) as receiver, subscribed(client, key, receiver.url) as made:
        receiver.headers["location"] = "/elsewhere"
        server = happen(made["kind"])
        got = await receiver.until(lambda got: len([one for one in got if one.json["server_id"] == server]) == 6)
        mine = [one for one in got if one.json["server_id"] == server]
        assert len({one.identity for one in mine}) == 1
        assert len({one.body for one in mine}) == 1
        assert all(one.signed_by(made["secret"]) for one in mine)
        [row] = await until_state(client, key, made["id"], "delivered")
        assert row["attempts"] == 6
        assert (await row_of(client, key, made["id"]))["failures"] == 0


@pytest.mark.usefixtures("sending")
async def test_what_is_given_up_can_be_replayed(citadel: Instance, client: Client) -> None:
    key = citadel.admin_key
    async with Receiver.running(*[500] * 6) as receiver, subscribed(client, key, receiver.url) as made:
        server = happen(made["kind"])
        [dead] = await until_state(client, key, made["id"], "dead")
        assert (dead["attempts"], dead["last_error"]) == (6, "HTTP 500")
        assert (await row_of(client, key, made["id"]))["failures"] == 1
        again = await client.post({}, f"{PATH}/{made['id']}/deliveries/{dead['id']}/replay", key=key)
        assert again.json()["state"] == "pending"
        got = await receiver.until(lambda got: len(got) == 7)
        assert got[-1].json["server_id"] == server
        assert got[-1].identity == dead["message_id"]
        await until_state(client, key, made["id"], "delivered")
        assert (await row_of(client, key, made["id"]))["failures"] == 0


@pytest.mark.usefixtures("sending")
async def test_who_takes_nothing_any_more_is_left_alone_until_enabled_again(citadel: Instance, client: Client) -> None:
    """The run's Citadel gives up on a subscriber after two events."""
    key = citadel.admin_key
    async with Receiver.running(*[500] * 12) as receiver, subscribed(client, key, receiver.url) as made:
        happen(made["kind"])
        await until_state(client, key, made["id"], "dead")
        happen(made["kind"])
        await until_state(client, key, made["id"], "dead", 2)
        row = await row_of(client, key, made["id"])
        assert (row["enabled"], row["failures"]) == (False, 2)
        assert "2 events in a row" in row["disabled_reason"]
        happen(made["kind"])
        assert len(await deliveries(client, key, made["id"])) == 2
        changed = await client.ask("PATCH", f"{PATH}/{made['id']}", data=b'{"enabled": true}', key=key)
        assert (changed.json()["enabled"], changed.json()["failures"]) == (True, 0)
        assert (await client.post(b"", f"{PATH}/{made['id']}/replay", key=key)).json() == {"replayed": 2}
        await until_state(client, key, made["id"], "delivered", 2)


@pytest.mark.usefixtures("sending")
async def test_who_says_it_is_gone_gets_nothing_more(citadel: Instance, client: Client) -> None:
    async with Receiver.running(410) as receiver, subscribed(client, citadel.admin_key, receiver.url) as made:
        happen(made["kind"])
        await until_state(client, citadel.admin_key, made["id"], "dead")
        assert not (await row_of(client, citadel.admin_key, made["id"]))["enabled"]


@pytest.mark.usefixtures("sending")
async def test_nothing_is_lost_while_nobody_listens(citadel: Instance, client: Client) -> None:
    """Events of a minute in which the receiver is not there arrive when it is."""
    key = citadel.admin_key
    async with Receiver.running(*[500] * 40) as receiver, subscribed(client, key, receiver.url) as made:
        servers = {happen(made["kind"]) for _ in range(20)}
        await receiver.until(lambda got: {one.json["server_id"] for one in got} >= servers)
        receiver.answers.clear()
        rows = await until_state(client, key, made["id"], "delivered", 20)
        assert len({row["event_id"] for row in rows}) == 20


@pytest.mark.usefixtures("sending")
async def test_a_slow_subscriber_holds_up_nobody_else(citadel: Instance, client: Client) -> None:
    from apps.orchestration.models import Subscription

    key = citadel.admin_key
    async with (
        Receiver.running(*[0] * 100) as slow,
        Receiver.running() as quick,
        subscribed(client, key, slow.url) as first,
        subscribed(client, key, quick.url) as second,
    ):
        Subscription.objects.filter(subscription_id=first["id"]).update(events=[second["kind"]])
        for count in range(1, 5):
            happen(second["kind"])
            await quick.until(lambda got, count=count: len(got) == count, within=4 + HELD_UP)
        assert slow.got


@pytest.mark.usefixtures("sending")
async def test_after_a_rotation_the_old_secret_is_good_for_a_while(citadel: Instance, client: Client) -> None:
    key = citadel.admin_key
    async with Receiver.running() as receiver, subscribed(client, key, receiver.url) as made:
        new = (await client.post(b"", f"{PATH}/{made['id']}/rotate", key=key)).json()["secret"]
        assert new != made["secret"]
        happen(made["kind"])
        [got] = await receiver.until(lambda got: got)
        assert got.signed_by(new)
        assert got.signed_by(made["secret"])


async def test_a_change_leads_to_no_forbidden_address_either(citadel: Instance, client: Client) -> None:
    """What a new subscription may say is tried with all of them elsewhere."""
    async with subscribed(client, citadel.admin_key, "http://127.0.0.1:9/") as made:
        for url in (*(f"http://{host}/" for host in NEVER), *URLS):
            body = json.dumps({"url": url}).encode()
            refused = await client.ask("PATCH", f"{PATH}/{made['id']}", data=body, key=citadel.admin_key)
            assert (refused.status, refused.json()["error"]["param"]) == (400, "url"), url


@pytest.mark.usefixtures("sending")
async def test_the_address_is_checked_again_when_it_is_called(citadel: Instance, client: Client) -> None:
    """Its name may lead elsewhere by then."""
    from apps.orchestration.models import Subscription

    key = citadel.admin_key
    async with Receiver.running() as receiver, subscribed(client, key, receiver.url) as made:
        Subscription.objects.filter(subscription_id=made["id"]).update(url="http://169.254.169.254/")
        happen(made["kind"])
        [row] = await until_state(client, key, made["id"], "dead")
        assert "may not be called" in row["last_error"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "url"),
        (b'{"url": 5}', "url"),
        (b'{"url": "http://127.0.0.1/", "events": ["nothing_of_ours"]}', "events[0]"),
        (b'{"url": "http://127.0.0.1/", "events": "all"}', "events"),
        (b'{"url": "http://127.0.0.1/", "description": "\\u0000"}', "description"),
        (b'{"url": "http://127.0.0.1/", "event": ["server_drained"]}', "event"),
    ],
)
async def test_subscriptions_that_can_not_be(citadel: Instance, client: Client, body: bytes, param: str) -> None:
    refused = await client.post(body, PATH, key=citadel.admin_key)
    assert (refused.status, refused.json()["error"]["param"]) == (400, param)


async def test_a_change_of_a_field_that_there_is_not_is_refused(citadel: Instance, client: Client) -> None:
    async with subscribed(client, citadel.admin_key, "http://127.0.0.1:9/") as made:
        one = f"{PATH}/{made['id']}"
        refused = await client.ask("PATCH", one, data=b'{"enabled": false, "surplus": 1}', key=citadel.admin_key)
        assert (refused.status, refused.json()["error"]["param"]) == (400, "surplus")
        assert (await client.get(one, key=citadel.admin_key)).json()["enabled"] is True


async def test_a_change_leaves_alone_what_others_change_meanwhile(
    citadel: Instance, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its address is looked up the secret is rotated, and the receiver says that it is gone; nobody waits."""
    from apps.orchestration.models import Subscription
    from apps.orchestration.webhooks import outgoing, subscribing

    key = citadel.admin_key
    async with subscribed(client, key, "http://127.0.0.1:9/") as made:
        rows = Subscription.objects.filter(subscription_id=made["id"])

        def meanwhile(_url: str) -> None:
            assert not connection.in_atomic_block
            outgoing.rotate(rows.get())
            rows.update(enabled=False, disabled_reason="gone", failures=3)

        monkeypatch.setattr(subscribing, "check_address", meanwhile)
        old = rows.get()
        new = await asyncio.to_thread(subscribing.change, rows.get(), {"url": "http://127.0.0.1:8/"})
        assert (new.url, new.enabled, new.disabled_reason, new.failures) == ("http://127.0.0.1:8/", False, "gone", 3)
        assert (new.previous_salt, rows.get().salt) == (old.salt, new.salt)
        assert new.salt != old.salt
        monkeypatch.setattr(subscribing, "check_address", lambda _url: rows.delete())
        with pytest.raises(NotFound):
            await asyncio.to_thread(subscribing.change, rows.get(), {"url": "http://127.0.0.1:9/"})
        assert not rows.exists()


async def test_nobody_waits_while_the_address_of_a_new_one_is_looked_up(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.orchestration.webhooks import subscribing

    locked = []
    monkeypatch.setattr(subscribing, "check_address", lambda _url: locked.append(connection.in_atomic_block))
    made = await asyncio.to_thread(subscribing.subscribe, "test", {"url": "http://127.0.0.1:9/"})
    await asyncio.to_thread(subscribing.end, made)
    assert locked == [False]


async def test_who_may(citadel: Instance, client: Client) -> None:
    admin = citadel.admin_key
    async with subscribed(client, admin, "http://127.0.0.1:9/", description="mine") as made:
        one = f"{PATH}/{made['id']}"
        see = [("GET", PATH), ("GET", one), ("GET", f"{one}/deliveries")]
        act = [("POST", PATH), ("PATCH", one), ("POST", f"{one}/rotate"), ("POST", f"{one}/replay"), ("DELETE", one)]
        for role, may_see, may_act in (("developer", False, False), ("auditor", True, False), ("", False, False)):
            key = citadel.key(role=role) if role else None
            for method, path in [*see, *act]:
                allowed = may_see if (method, path) in see else may_act
                answer = await client.ask(method, path, data=b"{}" if method != "GET" else None, key=key)
                assert answer.status == (200 if allowed else 403 if role else 401), (role, method, path)
        assert (await client.get(one, key=admin)).json()["description"] == "mine"
        for path in (f"{PATH}/sub_nobody", f"{PATH}/sub_nobody/deliveries"):
            assert (await client.get(path, key=admin)).status == 404
        assert (await client.post(b"", f"{one}/deliveries/12/replay", key=admin)).status == 404
        assert (await client.get(f"{one}/deliveries?state=x", key=admin)).status == 400


async def test_an_event_that_is_taken_back_is_told_to_nobody(citadel: Instance, client: Client) -> None:
    from django.db import transaction

    key = citadel.admin_key
    async with subscribed(client, key, "http://127.0.0.1:9/") as made:
        with pytest.raises(RuntimeError), transaction.atomic():
            happen(made["kind"])
            raise RuntimeError("taken back")
        assert await deliveries(client, key, made["id"]) == []
        happen(made["kind"])
        assert len(await deliveries(client, key, made["id"])) == 1


async def test_a_claimed_delivery_whose_sender_died_is_due_again(citadel: Instance, client: Client) -> None:
    """And two that claim at once never get the same."""
    from apps.orchestration.models import Delivery
    from apps.orchestration.webhooks.outgoing import _claim
    from citadel.sections import WebhooksSection

    key = citadel.admin_key
    async with subscribed(client, key, "http://127.0.0.1:9/") as made:
        mine = Delivery.objects.filter(subscription__subscription_id=made["id"])
        Delivery.objects.filter(state="pending").delete()
        happen(made["kind"])
        mine.update(next_at="2100-01-01T00:00:00Z")  # whatever sends meanwhile leaves it alone
        assert not [one for one in _claim(WebhooksSection(), (), 100) if one.subscription.subscription_id == made["id"]]
        mine.update(next_at="2020-01-01T00:00:00Z")
        claimed = _claim(WebhooksSection(), (), 100)
        if claimed:  # else a sender that runs was faster
            assert [one.attempts for one in claimed] == [1]
            assert _claim(WebhooksSection(), (), 100) == []
        assert mine.get().state == "pending"


@given(st.floats(0.1, 1e5), st.floats(0, 1e9), st.floats(0, 1))
def test_pauses_are_about_what_they_should_be_and_bounded(delay: float, retry_after: float, chance: float) -> None:
    found = pause(delay, retry_after, chance)
    assert 0.8 * delay <= found <= max(1.2 * delay, LONGEST_WAIT) + 1e-6
    assert found >= min(retry_after, LONGEST_WAIT)
