"""Where servers and subscribers may not be: refused when they say it, and never connected to however it came to be."""

import asyncio
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from django.core.exceptions import ValidationError

from apps.gateway.inference.http.failures import Failure
from apps.gateway.inference.http.upstream import Upstream
from apps.orchestration import discovery
from apps.orchestration.fleet import Server
from apps.orchestration.health.probes import Probes
from apps.orchestration.registry.addresses import address_of
from citadel import addresses, config
from citadel.sections import Config
from tests.forbidden_addresses import EVERYTHING, HOSTS, NEVER, REFUSAL, URLS, Trap, at_port, trap
from tests.gateway.client import CHAT, Client
from tests.held_up import HELD_UP
from tests.instance import Instance, running
from tests.working_on import working_on

REGISTER, SUBSCRIBE = "/orchestration/servers/register", "/orchestration/webhooks"
SETTINGS = {
    "CITADEL_DEMO_FLEET": "0",
    "CITADEL_LIMITS__GLOBAL__REQUESTS_PER_MINUTE": "0",
    "CITADEL_SECURITY__FLEET_NETWORKS": "[public]",
    "CITADEL_SECURITY__WEBHOOK_NETWORKS": "[public]",
    "CITADEL_WEBHOOKS__RETRY_DELAYS": "[0.1]",
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A Citadel whose servers and subscribers are on the public internet alone. Django here works on its database."""
    with running(tmp_path_factory.mktemp("strict"), SETTINGS) as citadel, working_on(citadel):
        yield citadel


@pytest.fixture
async def admin(strict: Instance) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {strict.admin_key}"}
    async with aiohttp.ClientSession(strict.url, headers=headers) as session:
        yield Client(session)


@pytest.fixture
def met() -> Iterator[Trap]:
    with trap() as listening:
        yield listening
        assert not listening.was_met()


def allowing(tmp_path: Path, *networks: str, **more: str) -> Config:
    names = json.dumps(networks)
    given = {"CITADEL_HOME": str(tmp_path), "CITADEL_SECURITY__FLEET_NETWORKS": names, **more}
    return config.read({**given, "CITADEL_SECURITY__SECRET_KEY": secrets.token_hex(32)})[0]


async def test_no_server_registers_there(admin: Client, met: Trap) -> None:
    for host in HOSTS:
        told = {"id": "never", "hostname": host.strip("[]"), "port": met.port, "kind": "openai", "models": ["m"]}
        refused = await admin.post(told, REGISTER)
        assert (refused.status, refused.json()["error"]["param"]) == (400, "hostname"), host
        assert not met.was_met(), host
    assert "never" not in (await admin.get("/orchestration/servers/list")).json()["servers"]


async def test_nobody_subscribes_there(admin: Client, met: Trap) -> None:
    for url in [*(f"{scheme}://{host}:{met.port}/" for host in HOSTS for scheme in ("http", "https")), *URLS]:
        refused = await admin.post({"url": at_port(url, met.port)}, SUBSCRIBE)
        assert (refused.status, refused.json()["error"]["param"]) == (400, "url"), url
        assert not met.was_met(), url


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_address_of_a_server_is_none(url: str) -> None:
    """As commands and files say it; the API has fields."""
    from apps.orchestration.models import Server as Row

    with pytest.raises(ValidationError):
        Row(server_id="never", **address_of(url)).clean_fields(exclude={"state"})


@pytest.mark.parametrize(("hosts", "networks"), [(HOSTS, ("public",)), (NEVER, EVERYTHING)], ids=["public", "all"])
async def test_a_server_that_has_come_to_be_there_is_not_called(
    tmp_path: Path, met: Trap, hosts: tuple[str, ...], networks: tuple[str, ...]
) -> None:
    """As when the setting was another one before: nobody probes it, asks it what it is, or sends it a request."""
    rules = allowing(tmp_path, *networks)
    async with calling(rules) as (upstream, probes):
        for host in hosts:
            server = Server("never", f"http://{host}:{met.port}", "openai")
            for outcome in ((await probes.probe(server))[0], await probes.connect(server)):
                assert outcome, host
                assert re.match("address_refused|no_address|refused|malformed", outcome.failure), (host, outcome)
            with pytest.raises(discovery.DiscoveryFailed, match=REFUSAL):
                await discovery.ask(discovery.Place(server.url, "openai"), rules)
            with pytest.raises(Failure):
                await upstream.ask(server, CHAT, b"{}", "request", "", 1)
            assert not met.was_met(), host


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "REDIS_CACHE_URL"])
async def test_a_server_where_an_own_database_has_come_to_be_is_not_called(
    tmp_path: Path, met: Trap, name: str
) -> None:
    """Whatever the networks allow, by an address as by a name; and that is said."""
    scheme = "postgresql" if name == "DATABASE_URL" else "redis"
    rules = allowing(tmp_path, *EVERYTHING, **{name: f"{scheme}://127.0.0.1:{met.port}/0"})
    async with calling(rules) as (upstream, probes):
        for host in ("127.0.0.1", "127.0.0.9", "[::1]", "[::ffff:127.0.0.1]", "127.1", "localhost"):
            server = Server("own", f"http://{host}:{met.port}", "openai")
            for outcome in ((await probes.probe(server))[0], await probes.connect(server)):
                assert outcome and outcome.failure == "address_refused", host
            with pytest.raises(discovery.DiscoveryFailed, match=REFUSAL):
                await discovery.ask(discovery.Place(server.url, "openai"), rules)
            with pytest.raises(Failure) as raised:
                await upstream.ask(server, CHAT, b"{}", "request", "", 1)
            assert not met.was_met(), host
            assert raised.value.reason == "address_refused", host


async def test_a_name_that_leads_elsewhere_a_moment_later_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be called where it leads to the first time; nobody is there."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, *_args: Any, **_options: Any) -> Any:
        asked.append(host)
        leads_to = {"moves.test": "127.0.0.1" if asked.count(host) > 1 else "127.0.0.9"}
        return real(leads_to.get(host, host), None, type=socket.SOCK_STREAM)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebinding)
    with trap("127.0.0.1") as met:
        async with calling(allowing(tmp_path, "127.0.0.9/32")) as (upstream, probes):
            server = Server("moves", f"http://moves.test:{met.port}", "openai")
            asks = upstream.ask(server, CHAT, b"{}", "request", "", 1)
            for call in (probes.connect(server), probes.probe(server), asks):
                asked.clear()
                with suppress(Failure):
                    await call
                assert asked == ["moves.test"]
                assert not met.was_met()


async def test_a_server_sends_nobody_elsewhere(tmp_path: Path, met: Trap) -> None:
    head = f"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{met.port}/\r\ncontent-length: 0\r\n\r\n"
    rules = allowing(tmp_path, "loopback")
    async with answering(head.encode()) as port, calling(rules) as (upstream, probes):
        server = Server("sends", f"http://127.0.0.1:{port}", "openai")
        outcome, _ = await probes.probe(server)
        assert outcome
        assert outcome.failure == "status_307"
        with pytest.raises(discovery.DiscoveryFailed, match="307"):
            await discovery.ask(discovery.Place(server.url, "openai"), rules)
        with pytest.raises(Failure):
            await upstream.ask(server, CHAT, b"{}", "request", "", 1)


async def test_events_go_nowhere_else_though_a_subscription_says_so(strict: Instance, admin: Client, met: Trap) -> None:
    """As when the setting was another one before."""
    from apps.orchestration.models import Delivery, Event, Subscription

    urls = [f"{scheme}://{host}:{met.port}/" for host in HOSTS for scheme in ("http", "https")]
    for some in (urls[:75], urls[75:]):
        Subscription.objects.bulk_create([Subscription(url=url, events=["never"]) for url in some])
        Event.objects.create(type="never", server_id="never", at=datetime.now(UTC))
        begun = time.monotonic()
        while pending := Delivery.objects.filter(state="pending").count():
            assert time.monotonic() - begun < 30 + HELD_UP, pending
            await asyncio.sleep(0.2)
        told = dict(Delivery.objects.values_list("subscription__url", "last_error"))
        assert set(told) == set(some)
        assert not {url: error for url, error in told.items() if not re.search(f"{REFUSAL}|ConnectError", error)}
        Subscription.objects.all().delete()


@asynccontextmanager
async def calling(rules: Config) -> AsyncIterator[tuple[Upstream, Probes]]:
    """What sends requests to servers, and what probes them."""
    upstream, probes = Upstream(rules, "hop"), Probes(rules)
    await upstream.start()
    await probes.start()
    try:
        yield upstream, probes
    finally:
        await probes.stop()
        await upstream.stop()


@asynccontextmanager
async def answering(packet: bytes) -> AsyncIterator[int]:
    """The port of a server that answers whatever comes with this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(packet)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield int(listener.sockets[0].getsockname()[1])
