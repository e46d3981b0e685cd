"""Webhooks that come in: who may send them, what they lead to, and that they lead to it once."""

import asyncio
import importlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from django.db.models import F

from apps.orchestration.webhooks import signing
from citadel.caller import STRANGER, Caller
from citadel.errors import NotFound, Unavailable
from tests.command import call
from tests.faults.invariants import eventually
from tests.gateway.client import Client, Reply
from tests.held_up import HELD_UP
from tests.instance import Instance

ALERTS, STATUS = "/webhooks/alertmanager", "/webhooks/server_status"
State = Callable[[str], str]
Told = Callable[[str], list[str]]


def alert(server: str, status: str = "firing", **more: Any) -> dict[str, Any]:
    """One alert as Alertmanager sends it."""
    known = {"fingerprint": secrets.token_hex(8), "startsAt": "2026-11-25T10:00:00Z"}
    return {"status": status, "labels": {"alertname": "Down", "server_id": server}, "annotations": {}, **known, **more}


def payload(*alerts: dict[str, Any]) -> dict[str, Any]:
    return {"version": "4", "status": alerts[0]["status"] if alerts else "firing", "alerts": list(alerts)}


def results(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [act["result"] for act in reply.json()["actions"]]


@pytest.fixture
def hook(citadel: Instance) -> Iterator[Any]:
    """A type that an operator has defined."""
    from apps.orchestration.models import Hook

    made = Hook.objects.create(name=f"hook-{secrets.token_hex(4)}", fields=["host.name"])
    made.rules.create(match={"state": "down*"}, server=["host.name"], action="drain", position=1)
    made.rules.create(match={"state": "up"}, server=["host.name"], action="enable", position=2)
    made.rules.create(match={"state": "sick"}, server=["host.name"], action="unhealthy", position=3)
    yield made
    made.delete()


async def test_a_firing_alert_drains_and_a_resolved_one_enables(
    citadel: Instance, client: Client, server: str, state: State, told: Told
) -> None:
    key = citadel.key(role="operator")
    one = alert(server)
    assert results(await client.post(payload(one), ALERTS, key=key)) == ["done"]
    assert state(server) == "draining"
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    assert state(server) == "active"
    assert told(server)[-2:] == ["server_drained", "server_enabled"]


async def test_an_alert_that_still_fires_drains_who_has_registered_anew(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    key, one = citadel.key(role="operator"), alert(server)
    place = {"id": server, "hostname": "127.0.0.1", "port": 9, "models": ["m"]}
    for _ in range(2):
        assert results(await client.post(payload(one), ALERTS, key=key)) == ["done"]
        assert results(await client.post(payload(one), ALERTS, key=key)) == ["duplicate"]
        assert state(server) == "draining"
        assert (await client.ask("DELETE", f"/orchestration/servers/{server}", key=key)).status == 200
        assert (await client.post(place, "/orchestration/servers/register", key=key)).status == 200
        assert state(server) == "active"
    sick = {**one, "labels": {**one["labels"], "server_id": "nobody"}, "fingerprint": secrets.token_hex(8)}
    assert results(await client.post(payload(one, sick), ALERTS, key=key)) == ["done", "unknown_server"]


async def test_a_replayed_alert_changes_nothing(
    citadel: Instance, client: Client, server: str, state: State, told: Told
) -> None:
    key, one = citadel.admin_key, alert(server)
    await client.post(payload(one), ALERTS, key=key)
    await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)
    events = told(server)
    again = await client.post(payload(one), ALERTS, key=key)
    assert results(again) == ["duplicate"]
    assert again.json()["status"] == "duplicate"
    assert (state(server), told(server)) == ("active", events)


async def test_alerts_at_once_act_once(citadel: Instance, client: Client, server: str, told: Told) -> None:
    body = payload(alert(server))
    events = told(server)
    found = await asyncio.gather(*(client.post(body, ALERTS, key=citadel.admin_key) for _ in range(8)))
    assert sorted(results(one)[0] for one in found) == ["done"] + ["duplicate"] * 7
    assert told(server) == [*events, "server_drained"]


async def test_an_alert_that_keeps_firing_acts_once_however_long(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    """An operator has enabled the server, and the alert is older than what is kept; Alertmanager repeats it."""
    from apps.orchestration.models import HookMark, Server
    from apps.orchestration.webhooks import incoming
    from apps.orchestration.webhooks.outgoing import prune
    from apps.orchestration.webhooks.rules import digest
    from citadel.sections import WebhooksSection

    one, key, kept = alert(server), citadel.key(role="operator"), WebhooksSection(retention_days=7)
    assert results(await client.post(payload(one), ALERTS, key=key)) == ["done"]
    assert (await client.post({}, f"/orchestration/servers/{server}/enable", key=key)).status == 200
    [act] = incoming.read(incoming.find("alertmanager"), "", {}, json.dumps(payload(one)).encode()).acts
    mark = digest(act.mark, Server.objects.get(server_id=server).pk)
    for age, result in ((5, "duplicate"), (5, "duplicate"), (8, "done")):
        HookMark.objects.filter(digest=mark).update(at=F("at") - timedelta(days=age))
        await asyncio.to_thread(prune, kept)
        assert results(await client.post(payload(one), ALERTS, key=key)) == [result]
        assert state(server) == ("active" if result == "duplicate" else "draining")


async def test_an_alert_about_two_servers_is_in_nobody_s_way(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    """Somebody else has locked the second of them, to change it."""
    with citadel.registered("http://127.0.0.1:9", ["a"]) as first, psycopg.connect(citadel.database_url) as other:
        other.execute("SELECT 1 FROM orchestration_server WHERE server_id = %s FOR UPDATE", (server,))
        body = payload(alert(first), alert(server))
        sent = asyncio.create_task(client.post(body, ALERTS, key=citadel.admin_key))
        await asyncio.to_thread(eventually, lambda: not waits_for_a_lock(citadel))
        change = "UPDATE orchestration_server SET weight = 7 WHERE server_id = %s"
        await asyncio.to_thread(other.execute, change, (server,))
        other.commit()
        assert results(await sent) == ["done", "done"]
        assert (state(first), state(server)) == ("draining", "draining")


def waits_for_a_lock(citadel: Instance) -> bool:
    """Whether anybody does."""
    with psycopg.connect(citadel.database_url) as connection:
        return connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None


@pytest.mark.parametrize("before", ["disabled", "pending"])
async def test_what_an_operator_has_taken_out_no_alert_brings_back(
    citadel: Instance, client: Client, server: str, state: State, before: str
) -> None:
    from apps.orchestration.models import Server

    Server.objects.filter(server_id=server).update(state=before)
    for status in ("firing", "resolved"):
        assert results(await client.post(payload(alert(server, status)), ALERTS, key=citadel.admin_key)) == [
            "unchanged"
        ]
    assert state(server) == before


async def test_a_server_drains_until_the_last_of_its_alerts_is_resolved(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    first, second = alert(server), alert(server)
    key = citadel.admin_key
    assert results(await client.post(payload(first, second), ALERTS, key=key)) == ["done", "unchanged"]
    assert results(await client.post(payload({**first, "status": "resolved"}), ALERTS, key=key)) == ["unchanged"]
    assert state(server) == "draining"
    assert results(await client.post(payload({**second, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    assert state(server) == "active"


async def test_an_alert_that_lost_its_end_ends_with_the_next_of_its_kind(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    """Alertmanager was restarted in between: the alert has begun anew."""
    one, key = alert(server), citadel.admin_key
    again = {**one, "startsAt": "2026-11-25T11:00:00Z"}
    assert results(await client.post(payload(one), ALERTS, key=key)) == ["done"]
    assert results(await client.post(payload(again), ALERTS, key=key)) == ["unchanged"]
    assert results(await client.post(payload({**again, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    assert state(server) == "active"


async def test_the_end_of_another_alert_enables_nothing(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    """One that no longer holds the server, since an operator has enabled it in between."""
    first, second, key = alert(server), alert(server), citadel.key(role="operator")
    assert results(await client.post(payload(first), ALERTS, key=key)) == ["done"]
    assert (await client.post({}, f"/orchestration/servers/{server}/enable", key=key)).status == 200
    assert results(await client.post(payload(second), ALERTS, key=key)) == ["done"]
    assert results(await client.post(payload({**first, "status": "resolved"}), ALERTS, key=key)) == ["unchanged"]
    assert state(server) == "draining"
    assert results(await client.post(payload({**second, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    assert state(server) == "active"


async def test_a_report_of_a_cause_that_drains_nothing_enables_nothing(
    citadel: Instance, client: Client, hook: Any, server: str, state: State
) -> None:
    """As of a warning, where by the rules the critical ones alone drain."""
    hook.cause = ["id"]
    hook.save()
    path, about, key = f"/webhooks/{hook.name}", {"host": {"name": server}}, citadel.admin_key
    for said, cause, result, after in (
        ("down", {"id": "critical"}, "done", "draining"),
        ("mild", {"id": "warning"}, None, "draining"),
        ("up", {"id": "warning"}, "unchanged", "draining"),
        ("up", {}, "unchanged", "draining"),
        ("up", {"id": "critical"}, "done", "active"),
    ):
        reply = await client.post({"state": said, **cause, **about}, path, key=key)
        assert (results(reply), state(server)) == ([result] if result else [], after)


async def test_a_report_ends_what_other_reports_of_its_type_hold_where_that_has_no_causes(
    citadel: Instance, client: Client, hook: Any, server: str, state: State
) -> None:
    """Other types' holds stay."""
    path, about, key = f"/webhooks/{hook.name}", {"host": {"name": server}}, citadel.admin_key
    one = alert(server)
    assert results(await client.post(payload(one), ALERTS, key=key)) == ["done"]
    assert results(await client.post({"state": "up", "id": "1", **about}, path, key=key)) == ["unchanged"]
    assert results(await client.post({"state": "down", "id": "2", **about}, path, key=key)) == ["unchanged"]
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["unchanged"]
    assert results(await client.post({"state": "up", "id": "3", **about}, path, key=key)) == ["done"]
    assert state(server) == "active"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_what_an_operator_drains_no_alert_brings_back(
    citadel: Instance, client: Client, server: str, state: State, when: str
) -> None:
    one, key = alert(server), citadel.key(role="operator")
    path = f"/orchestration/servers/{server}/drain"
    if when == "before":
        assert (await client.post({}, path, key=key)).status == 200
    assert results(await client.post(payload(one), ALERTS, key=key)) == ["unchanged" if when == "before" else "done"]
    if when == "meanwhile":
        assert (await client.post({}, path, key=key)).status == 200
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["unchanged"]
    assert state(server) == "draining"


async def test_a_failover_by_hand_outlasts_an_alert(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    one, key = alert(server), citadel.key(role="operator")
    await client.post(payload(one), ALERTS, key=key)
    assert (await client.post({}, f"/orchestration/failover/{server}", key=key)).status == 200
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["unchanged"]
    assert state(server) == "draining"


async def test_what_an_alert_drained_before_there_were_holds_is_enabled_too(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    """As an upgrade finds it: the state and the event, no hold."""
    from django.apps import apps

    from apps.orchestration.models import Hold

    migration = importlib.import_module("apps.orchestration.migrations.0008_holds")
    one, key = alert(server), citadel.admin_key
    await client.post(payload(one), ALERTS, key=key)
    Hold.objects.filter(server__server_id=server).delete()
    migration.hold_what_webhooks_have_drained(apps, None)
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    assert state(server) == "active"


async def test_alerts_about_nothing_of_ours(citadel: Instance, client: Client, server: str, state: State) -> None:
    unknown = await client.post(payload(alert("nobody"), alert(server)), ALERTS, key=citadel.admin_key)
    assert results(unknown) == ["unknown_server", "done"]
    unlabelled = {"status": "firing", "labels": {"instance": "10.0.0.1"}}
    assert results(await client.post(payload(unlabelled), ALERTS, key=citadel.admin_key)) == []
    assert results(await client.post(payload(), ALERTS, key=citadel.admin_key)) == []


async def test_an_alert_that_came_too_early_acts_when_it_comes_again(
    citadel: Instance, client: Client, server: str, state: State
) -> None:
    from apps.orchestration.models import Server

    one = alert(server)
    Server.objects.filter(server_id=server).update(server_id=f"{server}-x")
    assert results(await client.post(payload(one), ALERTS, key=citadel.admin_key)) == ["unknown_server"]
    Server.objects.filter(server_id=f"{server}-x").update(server_id=server)
    assert results(await client.post(payload(one), ALERTS, key=citadel.admin_key)) == ["done"]
    assert state(server) == "draining"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (ALERTS, {}, "alerts"),
        (ALERTS, {"alerts": {}}, "alerts"),
        (ALERTS, {"alerts": [{"status": "firing"}]}, "alerts[0].labels"),
        (ALERTS, [], None),
        (STATUS, {}, "server_id"),
        (STATUS, {"server_id": "a"}, "status"),
        (STATUS, {"server_id": "a", "status": "fine"}, "status"),
        (STATUS, {"server_id": "a\0", "status": "healthy"}, "server_id"),
        (STATUS, {"server_id": "a", "status": "healthy", "load_metrics": {"cpu": 2}}, "load_metrics.cpu"),
    ],
)
async def test_bodies_that_are_refused(
    citadel: Instance, client: Client, path: str, body: Any, param: str | None
) -> None:
    answer = await client.post(json.dumps(body).encode(), path, key=citadel.admin_key)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", [ALERTS, STATUS, "/webhooks/nobody-defined-it"])
@pytest.mark.parametrize(
    ("role", "status"), [("", 401), ("noise", 401), ("developer", 403), ("auditor", 403), ("operator", 0), ("admin", 0)]
)
async def test_who_may(citadel: Instance, client: Client, path: str, role: str, status: int) -> None:
    """A stranger doesn't learn which types there are."""
    key = {"": None, "noise": "whk_noise"}.get(role) if role in ("", "noise") else citadel.key(role=role)
    answer = await client.post({}, path, key=key)
    assert answer.status == (status or (404 if "nobody" in path else 400))


async def test_a_status_goes_onto_the_board_and_is_told(
    citadel: Instance, client: Client, server: str, told: Told
) -> None:
    async def row() -> dict[str, Any]:
        page = (await client.get("/health/enterprise", key=citadel.admin_key)).json()
        return next(one for one in page["server_details"] if one["server_id"] == server)

    sent = {"server_id": server, "status": "degraded", "message": "warm", "load_metrics": {"cpu": 0.5, "queue": 3}}
    assert results(await client.post(sent, STATUS, key=citadel.admin_key)) == ["done"]
    found = await row()
    assert (found["health_status"], found["health_source"], found["health_reason"]) == ("degraded", "heartbeat", "warm")
    assert (found["load_metrics"]["cpu"], found["load_metrics"]["queue"]) == (0.5, 3)
    assert told(server)[-1] == "health_status_changed"
    await client.post({"server_id": server, "status": "healthy"}, STATUS, key=citadel.admin_key)
    assert (await row())["health_status"] == "healthy"


@pytest.mark.parametrize("how", ["api", "command", "console"])
async def test_enabling_a_server_undoes_what_webhooks_say_of_its_health(
    citadel: Instance, client: Client, server: str, told: Told, how: str
) -> None:
    """It is active all the time; heartbeats say nothing of its health."""
    key = citadel.admin_key

    async def status() -> str:
        page = (await client.get(f"/orchestration/servers/{server}", key=key)).json()
        return f"{page['health_status']} {page['health_source']}"

    await client.post({"server_id": server, "status": "unhealthy", "message": "hot"}, STATUS, key=key)
    assert (await client.post({}, f"/orchestration/servers/{server}/heartbeat", key=key)).status == 200
    assert await status() == "unhealthy heartbeat"
    if how == "api":
        assert (await client.post({}, f"/orchestration/servers/{server}/enable", key=key)).status == 200
    else:
        await asyncio.to_thread(enable_by, how, server)
    assert (await status()).startswith("healthy")
    await client.post({"server_id": server, "status": "degraded"}, STATUS, key=key)
    assert await status() == "degraded heartbeat"
    changes = [one for one in told(server) if one == "health_status_changed"]
    assert len(changes) == 3


def enable_by(how: str, server: str) -> None:
    """As an operator does it elsewhere."""
    from django.contrib.admin import site
    from django.contrib.auth.models import User
    from django.test import RequestFactory

    from apps.orchestration.admin import ServerAdmin
    from apps.orchestration.models import Server

    if how == "command":
        call("server", "enable", server)
        return
    request = RequestFactory().post("/")
    request.user = User(username="somebody", is_superuser=True)
    ServerAdmin(Server, site).enable(request, Server.objects.filter(server_id=server))


async def test_a_webhook_that_enables_leaves_what_others_say_of_the_health(
    citadel: Instance, client: Client, server: str
) -> None:
    one, key = alert(server), citadel.admin_key
    await client.post({"server_id": server, "status": "unhealthy"}, STATUS, key=key)
    await client.post(payload(one), ALERTS, key=key)
    assert results(await client.post(payload({**one, "status": "resolved"}), ALERTS, key=key)) == ["done"]
    page = (await client.get(f"/orchestration/servers/{server}", key=key)).json()
    assert (page["state"], page["health_status"]) == ("active", "unhealthy")


async def test_a_status_of_nobody(citadel: Instance, client: Client) -> None:
    answer = await client.post({"server_id": "nobody", "status": "healthy"}, STATUS, key=citadel.admin_key)
    assert (answer.status, answer.code, answer.json()["error"]["param"]) == (404, "server_not_found", "server_id")


async def test_a_type_that_an_operator_defines(
    citadel: Instance, client: Client, hook: Any, server: str, state: State
) -> None:
    path = f"/webhooks/{hook.name}"
    missing = await client.post({"state": "down"}, path, key=citadel.admin_key)
    assert (missing.status, missing.json()["error"]["param"]) == (400, "host.name")
    for said, after in (("downhill", "draining"), ("else", "draining"), ("up", "active")):
        answer = await client.post({"state": said, "host": {"name": server}}, path, key=citadel.admin_key)
        assert (answer.status, state(server)) == (200, after)
    hook.enabled = False
    hook.save()
    assert (await client.post({"state": "down"}, path, key=citadel.admin_key)).status == 404


async def test_a_type_may_say_how_a_server_is(
    citadel: Instance, client: Client, hook: Any, server: str, told: Told
) -> None:
    body = {"state": "sick", "host": {"name": server}}
    assert results(await client.post(body, f"/webhooks/{hook.name}", key=citadel.admin_key)) == ["done"]
    happened = [kind for kind in told(server) if kind != "load_threshold_exceeded"]  # which a tick may tell meanwhile
    assert happened[-1] == "health_status_changed"


async def test_a_bearer_opens_its_own_type_alone(citadel: Instance, client: Client, hook: Any, server: str) -> None:
    from apps.orchestration.webhooks.credentials import new_token

    old, token = new_token(hook), new_token(hook)
    body = {"state": "down", "host": {"name": server}}
    assert results(await client.post(body, f"/webhooks/{hook.name}", key=token)) == ["done"]
    for path, key in ((ALERTS, token), (f"/webhooks/{hook.name}", old), (f"/webhooks/{hook.name}", f"{token}x")):
        assert (await client.post(body, path, key=key)).status == 401
    assert (await client.get(f"/webhooks/{hook.name}", key=token)).status == 401
    assert hook.token_digest not in token


class Signed:
    """Sends what a type's secret has signed."""

    def __init__(self, citadel: Instance, client: Client, hook: Any):
        from django.conf import settings

        from apps.orchestration.webhooks.credentials import new_secret

        self.secret = new_secret(hook, settings.SECRET_KEY)
        self._client, self._path = client, f"/webhooks/{hook.name}"

    async def __call__(
        self, body: Any, *, identity: str = "", off: int = 0, secret: str = "", sent: bytes | None = None
    ) -> Reply:
        data = json.dumps(body).encode()
        identity = identity or f"msg_{secrets.token_hex(8)}"
        headers = signing.headers([secret or self.secret], identity, int(time.time()) + off, data)
        more = {name.replace("-", "_"): value for name, value in headers.items()}
        return await self._client.post(sent if sent is not None else data, self._path, **more)


async def test_a_signature_opens_its_own_type(
    citadel: Instance, client: Client, hook: Any, server: str, state: State
) -> None:
    send = Signed(citadel, client, hook)
    body = {"state": "down", "host": {"name": server}}
    assert (await send(body, secret=signing.secret_of("x", "y"))).code == "invalid_signature"
    assert (await send(body, sent=b'{"state":"up"}')).code == "invalid_signature"
    assert (await send(body, off=-310)).code == "clock_skew"
    assert (await send(body, off=310)).code == "clock_skew"
    assert state(server) == "active"
    assert results(await send(body, off=-250)) == ["done"]
    assert state(server) == "draining"


async def test_a_replayed_signature_changes_nothing(
    citadel: Instance, client: Client, hook: Any, server: str, state: State
) -> None:
    from apps.orchestration.models import Server

    send = Signed(citadel, client, hook)
    body = {"state": "down", "host": {"name": server}}
    assert (await send(body, identity="msg_1")).json()["status"] == "accepted"
    Server.objects.filter(server_id=server).update(state="active")
    again = await send(body, identity="msg_1", off=5)
    assert (again.json()["status"], results(again), state(server)) == ("duplicate", [], "active")
    assert results(await send(body, identity="msg_2")) == ["done"]


async def test_what_came_is_kept_and_shown(citadel: Instance, client: Client, hook: Any, server: str) -> None:
    key = citadel.key(role="operator")
    path = f"/webhooks/{hook.name}"
    for said in ("down", "up", "down"):
        await client.post({"state": said, "host": {"name": server}}, path, key=key, webhook_id=f"m-{said}")
    first = (await client.get(f"{path}?limit=2", key=citadel.key(role="auditor"))).json()
    assert [row["outcome"] for row in first["data"]] == ["duplicate", "accepted"]
    rest = (await client.get(f"{path}?limit=2&cursor={first['next']}", key=key)).json()
    assert (len(rest["data"]), rest["next"]) == (1, None)
    [row] = rest["data"]
    assert row["actions"] == [{"server_id": server, "action": "drain", "result": "done"}]
    assert row["sender"] == f"key {key.split('_')[1]}"
    kinds = (await client.get("/webhooks", key=key)).json()["data"]
    assert {"alertmanager", "server_status", hook.name} <= {one["name"] for one in kinds}
    assert (await client.get(path, key=citadel.key())).status == 403
    assert (await client.get("/webhooks/nobody-defined-it", key=key)).status == 404
    for query in ("limit=0", "limit=x", "cursor=x"):
        assert (await client.get(f"{path}?{query}", key=key)).status == 400


@pytest.mark.parametrize(("path", "action"), [(ALERTS, "drain"), (STATUS, "degraded")])
async def test_what_came_of_the_types_that_are_there_from_the_start_is_shown(
    citadel: Instance, client: Client, server: str, path: str, action: str
) -> None:
    body = payload(alert(server)) if path == ALERTS else {"server_id": server, "status": "degraded"}
    assert results(await client.post(body, path, key=citadel.admin_key)) == ["done"]
    shown = (await client.get(f"{path}?limit=1000", key=citadel.key(role="auditor"))).json()["data"]
    assert {"server_id": server, "action": action, "result": "done"} in [act for row in shown for act in row["actions"]]


async def test_strangers_who_look_up_webhooks_hold_up_nobody_with_a_key(
    citadel: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.orchestration import webhooks_api

    monkeypatch.setattr(webhooks_api, "_strangers", webhooks_api.Turns(0, 2))
    runtime = Mock(config=Mock(secret="any"))
    headers = {b"authorization": b"Bearer noise"}

    async def receive(caller: Caller) -> None:  # a name that needs no look-up
        request = Mock(auth=caller, raw_headers=headers, body=b"{}", runtime=runtime)
        await webhooks_api._receive(request, "\0")

    with pytest.raises(NotFound):
        await asyncio.wait_for(receive(Caller("k", "k", "t", "operator", None)), 1 + HELD_UP)
    waiting = [asyncio.create_task(receive(STRANGER)) for _ in range(2)]
    _, left = await asyncio.wait(waiting, timeout=0.1)
    assert len(left) == 2
    with pytest.raises(Unavailable):  # no more wait than that
        await asyncio.wait_for(receive(STRANGER), 1 + HELD_UP)
    waiting[0].cancel()
    await asyncio.wait(waiting, timeout=0.1)
    with pytest.raises(TimeoutError):  # where one has left there is room again
        await asyncio.wait_for(receive(STRANGER), 0.1)
    monkeypatch.setattr(webhooks_api, "WITHIN", 0.1)
    with pytest.raises(Unavailable):  # nobody waits for ever
        await asyncio.wait_for(receive(STRANGER), 1 + HELD_UP)
    waiting[1].cancel()
