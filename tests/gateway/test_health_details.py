"""Health pages with details: for who may see the fleet; a stranger sees the status alone."""

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import redis

from tests.fleet.control import Fleet
from tests.gateway.access.signing import simple
from tests.gateway.client import Client
from tests.gateway.elsewhere import Elsewhere
from tests.instance import Instance
from tests.security_lines import told

PAGES = ("/health/", "/health/detailed", "/health/enterprise")
STATUS = {"/health/": "status", "/health/detailed": "status", "/health/enterprise": "cluster_status"}


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    ("role", "details"),
    [("admin", True), ("operator", True), ("auditor", True), ("developer", False), ("", False), ("noise", False)],
)
async def test_details_are_for_who_may_see_the_fleet(
    citadel: Instance, client: Client, prefix: str, page: str, role: str, details: bool
) -> None:
    key = {"": "", "noise": "ctd_noise"}.get(role) if role in ("", "noise") else citadel.key(role=role)
    answer = await client.get(f"{prefix}{page}", key=key)
    assert answer.status == 200
    assert (set(answer.json()) > {STATUS[page]}) is details
    assert answer.json()[STATUS[page]] in ("healthy", "degraded", "unhealthy")


async def test_the_short_page(citadel: Instance, fleet: Callable[..., Fleet], model: str, client: Client) -> None:
    fleet(model)
    page = (await client.get("/health/", key=citadel.admin_key)).json()
    assert set(page) == {"status", "timestamp", "version", "uptime", "services", "servers"}
    assert page["services"] == {"redis": "healthy", "database": "healthy"}
    assert page["servers"]["total"] >= 1
    assert page["uptime"] > 0


async def test_the_detailed_page_asks_every_part(citadel: Instance, client: Client) -> None:
    page = (await client.get("/health/detailed", key=citadel.admin_key)).json()
    parts = page["services"]
    assert set(parts) == {"redis", "redis_cache", "database", "vector_store", "cpu", "memory", "processes"}
    for name in ("redis", "redis_cache", "database", "processes"):
        assert parts[name]["status"] == "healthy", parts
        assert parts[name]["latency_ms"] > 0
    assert "web-1" in parts["processes"]["message"]
    for inside in (citadel.redis_url, citadel.database_url, str(citadel.home)):
        assert inside not in str(page)


async def test_the_fleet_page_counts_by_what_the_board_says(
    citadel: Instance, fleet: Callable[..., Fleet], model: str, client: Client
) -> None:
    good, bad = fleet(model), fleet(model)
    sent = {"server_id": bad.server_id, "status": "unhealthy", "message": "on fire"}
    assert (await client.post(sent, "/webhooks/server_status", key=citadel.admin_key)).status == 200
    probed = f"/orchestration/servers/{good.server_id}/health?probe=true"
    assert (await client.get(probed, key=citadel.admin_key)).status == 200
    drained = f"/orchestration/servers/{bad.server_id}/drain"
    page = (await client.get("/health/enterprise", key=citadel.admin_key)).json()
    rows = {row["server_id"]: row for row in page["server_details"]}
    assert page["total_servers"] == len(rows)
    assert page["unhealthy_servers"] == sum(row["health_status"] == "unhealthy" for row in rows.values())
    assert (rows[good.server_id]["health_status"], rows[bad.server_id]["health_status"]) == ("healthy", "unhealthy")
    assert rows[bad.server_id]["health_reason"] == rows[bad.server_id]["message"] == "on fire"
    assert rows[good.server_id]["latency_ms"] >= 0
    listed = (await client.get("/orchestration/servers/list", key=citadel.admin_key)).json()["servers"]
    assert datetime.fromisoformat(listed[good.server_id]["last_seen"]) - datetime.fromisoformat(
        rows[good.server_id]["last_seen"]
    ) < timedelta(seconds=5)
    assert rows[bad.server_id]["models"] == [model]
    assert page["cluster_status"] == "degraded"
    assert (await client.post(b"", drained, key=citadel.admin_key)).status == 200
    page = (await client.get("/health/enterprise", key=citadel.admin_key)).json()
    counts = [page[f"{status}_servers"] for status in ("healthy", "degraded", "unhealthy")]
    assert sum(counts) == page["total_servers"], "one that is drained is in some way too"


async def test_a_stranger_has_nobody_asked(citadel: Instance, client: Client) -> None:
    """What anybody may call without a key costs Redis nothing."""
    client.session.headers.pop("authorization")
    with redis.Redis.from_url(citadel.redis_url) as state, state.monitor() as monitor:
        for _ in range(30):
            for page in PAGES:
                await client.get(page)
        state.echo("the end")
        heard = iter(monitor.next_command, None)
        commands = [
            said["command"] for said in itertools.takewhile(lambda said: "the end" not in said["command"], heard)
        ]
    assert sum(command == "HGETALL fleet:health" for command in commands) < 10, "the worker looks itself now and then"


async def test_a_scraper_from_a_network_that_may_needs_no_key(elsewhere: Elsewhere) -> None:
    """`elsewhere` lets loopback in; the run's own Citadel lets nobody."""
    async with elsewhere.asking() as client:
        client.session.headers.pop("authorization")
        assert (await client.get("/metrics")).status == 200
        assert "services" in (await client.get("/health/detailed")).json()
        assert (await client.get("/v1/models")).status == 401


async def test_a_scraper_that_brings_a_key_goes_by_that(elsewhere: Elsewhere) -> None:
    """A revoked one is refused, and the security log tells of it."""
    revoked, citadel = elsewhere.key(role="auditor"), elsewhere.citadel
    async with elsewhere.asking() as client:
        assert (await client.get("/metrics", key=revoked)).status == 200
        await client.ask("DELETE", f"/api/v1/keys/{revoked.split('_')[1]}", key=citadel.admin_key)
        citadel.settle()
        refused = await client.get("/metrics", key=revoked)
        assert (refused.status, refused.code) == (401, "invalid_api_key")
        assert set((await client.get("/health/detailed", key=revoked)).json()) == {"status"}
        assert (await client.get("/metrics", key=elsewhere.key())).code == "forbidden"
        client.session.headers.pop("authorization")
        assert (await client.get("/metrics", x_api_key=revoked)).status == 401
        signed = simple(f"cts_{revoked.split('_')[1]}_{'x' * 43}", "GET", "/metrics")
        assert (await client.get("/metrics", **signed)).code == "invalid_signature"
    [line] = told(citadel, request_id=refused.identity)
    assert (line["event"], line["who"]) == ("credential_refused", revoked.split("_")[1])


async def test_elsewhere_than_from_there_it_does(citadel: Instance, client: Client) -> None:
    client.session.headers.pop("authorization")
    assert (await client.get("/metrics")).status == 401
