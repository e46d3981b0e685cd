"""Keys that register and operate some servers alone."""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace

import pytest

from apps.orchestration.models import Server
from citadel.caller import Caller
from citadel.permissions import OF_SERVERS, PERMISSIONS, ROLES, may, outranks
from tests.fleet.control import Fleet
from tests.gateway.access.giving import within
from tests.gateway.client import Client
from tests.instance import Instance

Start = Callable[..., Fleet]
SERVERS = "/orchestration/servers"
WHOLE = Caller("whole", "key", "team", "operator", None)
PART = replace(WHOLE, key_id="part", servers=frozenset({"a", "b"}))


def test_a_permission_holds_for_its_servers_alone() -> None:
    for permission in PERMISSIONS:
        everywhere = permission in ROLES["operator"]
        assert may(PART, permission, server="a") is everywhere
        assert (
            may(PART, permission, server="c") is may(PART, permission) is (everywhere and permission not in OF_SERVERS)
        )
        assert may(WHOLE, permission, server="c") is everywhere


def test_nobody_gives_servers_beyond_the_own() -> None:
    manager = replace(WHOLE, role="admin", key_id="manager")
    some = replace(manager, servers=PART.servers)
    assert within(PART, manager)
    assert within(WHOLE, manager)
    assert within(PART, some)
    assert within(replace(PART, servers=frozenset({"a"})), some)
    for beyond in (WHOLE, replace(PART, servers=frozenset({"a", "c"})), manager):
        assert not within(beyond, some)
        assert not outranks(some, beyond)
    developer = replace(WHOLE, role="developer")
    assert within(developer, some)  # that operates none
    owner = replace(WHOLE, role="owner")
    assert not within(PART, owner)  # who operates none gives none


async def test_an_operator_of_some_servers(citadel: Instance, fleet: Start, client: Client, model: str) -> None:
    own, other = fleet(model), fleet(model)
    key = citadel.key(role="operator", servers=[own.server_id])
    asked = {
        "POST /drain": b"{}",
        "POST /disable": b"{}",
        "POST /enable": b"{}",
        "GET /health?probe=true": None,
    }
    for path, body in asked.items():
        method, _, verb = path.partition(" ")
        statuses = [
            (await client.ask(method, f"{SERVERS}/{server.server_id}{verb}", data=body, key=key)).status
            for server in (own, other)
        ]
        assert statuses == [200, 403], path
    reply = await client.ask("POST", f"/orchestration/failover/{other.server_id}", data=b"{}", key=key)
    assert reply.json()["error"]["message"] == (
        f"This needs the permission 'fleet.operate' for the server '{other.server_id}', and this key has it for others "
        "alone."
    )
    assert (await client.ask("DELETE", f"{SERVERS}/{other.server_id}", key=key)).status == 403
    assert Server.objects.get(server_id=other.server_id).state == "active"
    for named, status in (([own.server_id], 200), ([other.server_id], 403), ([], 403)):
        body = json.dumps({"model": model, "servers": named}).encode()
        assert (await client.ask("POST", "/management/models/preload", data=body, key=key)).status == status, named
    listed = (await client.get(f"{SERVERS}/list", key=key)).json()["servers"]
    assert {own.server_id, other.server_id} <= listed.keys()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/orchestration/webhooks", b'{"url": "https://example.org/", "events": ["*"]}'),
        ("/management/cache/clear", b"{}"),
        ("/webhooks/alertmanager", b'{"alerts": []}'),
    ],
)
async def test_what_is_for_the_whole_fleet_is_not_for_who_operates_a_part(
    citadel: Instance, client: Client, path: str, body: bytes
) -> None:
    reply = await client.ask("POST", path, data=body, key=citadel.key(role="operator", servers=["a"]))
    assert (reply.status, reply.code) == (403, "forbidden")
    assert "for all servers" in reply.json()["error"]["message"]


@pytest.mark.parametrize("role", ["server", "operator"])
async def test_a_machine_s_key_registers_that_machine_alone(
    citadel: Instance, fleet: Start, client: Client, model: str, role: str
) -> None:
    own, other = (f"of-its-own-{secrets.token_hex(4)}" for _ in range(2))
    put_in, key = fleet(model), citadel.key(role=role, servers=[own])
    url = put_in.url.rsplit(":", 1)[1].split("/")[0]

    async def register(server_id: str) -> int:
        body = json.dumps({"id": server_id, "hostname": "127.0.0.1", "port": int(url), "models": [model]}).encode()
        return (await client.ask("POST", f"{SERVERS}/register", data=body, key=key)).status

    try:
        assert [await register(server_id) for server_id in (own, other, put_in.server_id)] == [200, 403, 403]
        beats = [
            (await client.ask("POST", f"{SERVERS}/{server_id}/heartbeat", data=b"{}", key=key)).status
            for server_id in (own, put_in.server_id)
        ]
        assert beats == [200, 403]
        assert not Server.objects.filter(server_id=other).exists()
        assert (await client.ask("DELETE", f"{SERVERS}/{own}", key=key)).status == 200
    finally:
        Server.objects.filter(server_id__in=(own, other)).delete()


async def test_servers_of_a_key_by_the_api(citadel: Instance, client: Client) -> None:
    admin = citadel.key(role="admin")
    body = b'{"name": "n", "role": "operator", "servers": ["a"]}'
    made = (await client.ask("POST", "/api/v1/keys", data=body, key=admin)).json()
    assert made["servers"] == ["a"]
    changed = await client.ask("PATCH", f"/api/v1/keys/{made['key_id']}", data=b'{"servers": null}', key=admin)
    assert changed.json()["servers"] is None
    some = citadel.key(role="admin", servers=["a", "b"])
    for named, status in ((b'["b"]', 200), (b'["c"]', 403), (b"null", 403)):
        body = b'{"name": "n", "role": "operator", "servers": %s}' % named
        assert (await client.ask("POST", "/api/v1/keys", data=body, key=some)).status == status, named
