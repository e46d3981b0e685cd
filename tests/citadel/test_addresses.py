"""Which addresses may be called: networks by word and by CIDR, and those that never may."""

import asyncio
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel import addresses, config
from citadel.addresses import Addresses, AddressRefused, CheckedTransport, NoAddress, meant, own_services
from citadel.names import Lookups
from citadel.sections import ConfigError
from tests.fleet.control import Fleet
from tests.held_up import HELD_UP

TLS = Path(__file__).parents[1] / "gateway/inference/tls"
FLEET = Addresses(("loopback", "private"))
WEBHOOKS = Addresses(("public",))
ALL = Addresses(("loopback", "private", "public", "0.0.0.0/0", "::/0"))

NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
]


@pytest.mark.parametrize("address", NEVER)
def test_whatever_the_setting_says_these_are_refused(address: str) -> None:
    assert not ALL.permits(ip_address(address))
    with pytest.raises(AddressRefused, match="may not be called"):
        ALL.check(address, 80)


@pytest.mark.parametrize(
    ("address", "fleet", "webhooks"),
    [
        ("127.0.0.1", True, False),
        ("127.8.8.8", True, False),
        ("::1", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("10.0.0.1", True, False),
        ("172.31.255.255", True, False),
        ("172.32.0.1", False, True),
        ("192.168.1.20", True, False),
        ("100.64.0.1", True, False),
        ("fd12::1", True, False),
        ("::ffff:10.1.2.3", True, False),
        ("8.8.8.8", False, True),
        ("2606:4700::1", False, True),
        ("::ffff:8.8.8.8", False, True),
        ("192.0.2.1", False, False),
        ("198.18.0.1", False, False),
        ("203.0.113.7", False, False),
        ("240.0.0.1", False, False),
        ("2001:db8::1", False, False),
    ],
)
def test_the_words(address: str, fleet: bool, webhooks: bool) -> None:
    assert FLEET.permits(ip_address(address)) is fleet
    assert WEBHOOKS.permits(ip_address(address)) is webhooks


def test_a_network_allows_what_is_in_it_and_no_more() -> None:
    some = Addresses(("10.1.0.0/16", "203.0.113.0/24", "fd12::/16"))
    for address, allowed in (("10.1.2.3", True), ("10.2.0.1", False), ("203.0.113.9", True), ("fd12::9", True)):
        assert some.permits(ip_address(address)) is allowed
    assert not some.permits(ip_address("127.0.0.1"))


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "2130706433", "localhost"])
def test_every_spelling_leads_to_what_is_checked(host: str) -> None:
    assert set(FLEET.check(host, 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(AddressRefused):
        WEBHOOKS.check(host, 80)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "", "a" * 300, "\udcff", "a..b"])
def test_what_has_no_address_is_told(host: str) -> None:
    with pytest.raises(NoAddress):
        FLEET.check(host, 80)


def test_a_name_with_one_bad_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("10.0.0.1", "169.254.169.254")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_args, **_options: found)
    with pytest.raises(AddressRefused):
        FLEET.check("two-faced", 80)


def test_own_databases_are_refused_by_every_name_of_their_machine(tmp_path: Path) -> None:
    settings = config.read(
        {
            "CITADEL_HOME": str(tmp_path),
            "DATABASE_URL": "postgresql://u:p@127.0.0.1:6543/x",
            "REDIS_URL": "redis://localhost:7001/0",
            "REDIS_CACHE_URL": "redis://10.9.8.7",
        }
    )[0]
    assert sorted(own_services(settings)) == [("10.9.8.7", 6379), ("127.0.0.1", 6543), ("localhost", 7001)]
    fleet = addresses.of_fleet(settings)
    own = [("127.0.0.1", 6543), ("127.0.0.9", 6543), ("::1", 7001), ("localhost", 7001), ("10.9.8.7", 6379)]
    own.append((socket.gethostbyname(socket.gethostname()), 6543))
    for host, port in own:
        with pytest.raises(AddressRefused):
            fleet.check(host, port)
    for host, port in (("127.0.0.1", 6544), ("10.9.8.7", 6380), ("10.9.8.6", 6543)):
        assert fleet.check(host, port) == (host,)
    with pytest.raises(AddressRefused):
        addresses.of_webhooks(settings).check("10.9.8.7", 443)


def test_sockets_by_path_have_no_address(tmp_path: Path) -> None:
    urls = {"DATABASE_URL": "postgresql:///x?host=/run/pg", "REDIS_URL": "unix:///run/redis.sock"}
    assert list(own_services(config.read({"CITADEL_HOME": str(tmp_path), **urls})[0])) == []


@pytest.mark.parametrize("value", ["[loopback, privat]", "[10.0.0.0/33]", "[10.1.2.3/8]"])
def test_a_setting_that_names_no_network_is_an_error(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="is neither loopback"):
        config.read({"CITADEL_HOME": str(tmp_path), "CITADEL_SECURITY__FLEET_NETWORKS": value})


@given(st.ip_addresses(v=4))
def test_an_address_is_the_same_however_it_is_wrapped(address: IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", IPv6Address(0x2002 << 112 | int(address) << 80)):
        assert meant(ip_address(wrapped)) == address
        for rule in (FLEET, WEBHOOKS, ALL):
            assert rule.permits(ip_address(wrapped)) is rule.permits(address)


@given(st.ip_addresses())
def test_no_address_is_of_the_fleet_and_of_the_public(address: IPv4Address | IPv6Address) -> None:
    assert not (FLEET.permits(address) and WEBHOOKS.permits(address))
    if FLEET.permits(address) or WEBHOOKS.permits(address):
        assert ALL.permits(address)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=CheckedTransport(FLEET), timeout=5) as client:
        yield client


async def test_the_name_stays_in_the_request_and_is_looked_up_once(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads somewhere else the second time has no second time."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host: str, *args: object, **options: object) -> object:
        asked.append(host)
        if host == "rebinding.test":
            return real("127.0.0.1" if asked.count(host) == 1 else "169.254.169.254", None, type=socket.SOCK_STREAM)
        return real(host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebinding)
    with Fleet.start(models=["m"]) as server:
        answer = await client.get(f"http://rebinding.test:{server.port}/v1/models")
        assert answer.status_code == 200
        [seen] = server.log()
        assert seen.headers["host"] == f"rebinding.test:{server.port}"
        assert asked.count("rebinding.test") == 1
        with pytest.raises(AddressRefused):
            await client.get(f"http://rebinding.test:{server.port}/v1/models")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Has every name these addresses."""

    async def resolve(_self: Addresses, _host: str, _port: int) -> tuple[str, ...]:
        return addresses

    monkeypatch.setattr(Addresses, "resolve", resolve)


async def test_the_next_address_is_tried_where_one_takes_no_connection(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Fleet.start(models=["m"]) as server:
        resolve_to(monkeypatch, "127.0.0.77", "127.0.0.1")
        assert (await client.get(f"http://two.test:{server.port}/health")).status_code == 200


async def test_the_next_address_is_tried_where_one_says_nothing(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As IPv6 does where its packets are dropped, or a machine that is off."""
    resolve_to(monkeypatch, "127.0.0.77", "127.0.0.1")
    with Fleet.start(models=["m"]) as server, swallowing("127.0.0.77", server.port):
        begun = time.monotonic()
        assert (await client.get(f"http://two.test:{server.port}/health")).status_code == 200
        assert time.monotonic() - begun < 2 + HELD_UP


async def test_the_last_address_has_the_requests_own_time(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.77", "127.0.0.78")
    with socket.create_server(("127.0.0.79", 0)) as free:
        port = free.getsockname()[1]
    with swallowing("127.0.0.77", port), swallowing("127.0.0.78", port):
        begun = time.monotonic()
        with pytest.raises(httpx.ConnectTimeout):
            await client.get(f"http://two.test:{port}/", timeout=httpx.Timeout(5, connect=0.3))
        assert 0.5 < time.monotonic() - begun < 1 + HELD_UP, "no address has longer than the request allows"
        begun = time.monotonic()
        with pytest.raises(httpx.ConnectTimeout):
            await client.get(f"http://two.test:{port}/", timeout=httpx.Timeout(5, connect=2))
        assert time.monotonic() - begun > 2.5, "one second and two"


@contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """There connections are neither taken nor refused: as many wait to be accepted as may."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
        yield


@pytest.fixture
def own_authority(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The authority that has signed the tests' certificate is the only one that is believed."""
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
    addresses.authorities.cache_clear()
    yield
    addresses.authorities.cache_clear()


@pytest.mark.usefixtures("own_authority")
async def test_authorities_of_ones_own_are_believed_of_the_names_that_they_have_signed() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    async with await asyncio.start_server(answer, "0.0.0.0", 0, ssl=tls) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(transport=CheckedTransport(FLEET), timeout=5) as client:
            assert (await client.get(f"https://localhost:{port}/")).status_code == 204
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await client.get(f"https://127.0.0.2:{port}/")


async def test_a_name_that_leads_nowhere_is_a_failed_connection(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ConnectError):
        await client.get("http://no-such-name.invalid/")


class Resolver:
    """The system's, as far as it knows `127.0.0.1` alone and says nothing of names in `.hangs` until it is let go."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.lets_go = threading.Event()

    def look_up(self, host: str, *_args: object, **_options: object) -> object:
        self.asked[host] += 1
        if host.endswith(".hangs"):
            self.lets_go.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(addresses.socket, "getaddrinfo", made.look_up)
    yield made
    made.lets_go.set()


async def test_names_of_which_nobody_says_anything_hold_up_no_others(resolver: Resolver) -> None:
    """Neither addresses, of which nothing is to be looked up, nor names that are known."""
    hanging = [asyncio.create_task(FLEET.resolve(f"{number}.hangs", 80)) for number in range(40)]
    await asyncio.sleep(0.1)
    begun = time.monotonic()
    assert await FLEET.resolve("127.0.0.2", 80) == FLEET.check("127.0.0.2", 80) == ("127.0.0.2",)
    assert await FLEET.resolve("known.test", 80) == ("127.0.0.1",)
    assert time.monotonic() - begun < 1 + HELD_UP
    assert "127.0.0.2" not in resolver.asked
    for outcome in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(outcome, NoAddress)


async def test_a_name_is_looked_up_once_at_a_time(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "RESOLVE_WITHIN", 0.2)
    for _ in range(3):
        asks = [FLEET.resolve("one.hangs", port) for port in range(1, 40)]
        assert {type(one) for one in await asyncio.gather(*asks, return_exceptions=True)} == {NoAddress}
    assert resolver.asked["one.hangs"] == 1
    waiting = asyncio.create_task(FLEET.resolve("one.hangs", 80))
    await asyncio.sleep(0)
    resolver.lets_go.set()
    assert await waiting == ("127.0.0.1",)
    await FLEET.resolve("one.hangs", 80)
    assert resolver.asked["one.hangs"] == 2, "what was found is not kept: it may lead elsewhere by now"


async def test_who_stops_waiting_for_a_name_takes_it_from_nobody(resolver: Resolver) -> None:
    first, second = (asyncio.create_task(FLEET.resolve("two.hangs", 80)) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.sleep(0)
    resolver.lets_go.set()
    assert await second == ("127.0.0.1",)


def test_names_that_nobody_answers_for_leave_known_ones_their_threads(resolver: Resolver) -> None:
    lookups = Lookups(threads=2, prompt=0.1)
    local = (ip_address("127.0.0.1"),)
    assert lookups.ask("known.test").result(1 + HELD_UP) == local
    names = [f"{number}.hangs" for number in range(2)]
    for _ in range(2):
        slow = [lookups.ask(name) for name in names]
        assert lookups.ask("known.test").result(1 + HELD_UP) == local
        time.sleep(0.2)
        assert not any(one.done() for one in slow)
        resolver.lets_go.set()
        assert [one.result(1 + HELD_UP) for one in slow] == [local, local]
        resolver.lets_go.clear()


def test_no_more_names_are_looked_up_than_can_be_kept(resolver: Resolver) -> None:
    """What comes with requests is without end."""
    lookups = Lookups(threads=1, most=2)
    *kept, beyond = [lookups.ask(f"{number}.hangs") for number in range(3)]
    assert lookups.ask("127.0.0.3").result() == (ip_address("127.0.0.3"),)
    resolver.lets_go.set()
    assert [one.result(1 + HELD_UP) for one in kept] == [(ip_address("127.0.0.1"),)] * 2
    assert not beyond.done()
    assert "2.hangs" not in resolver.asked


def test_names_that_nobody_answers_for_leave_known_ones_their_bound(resolver: Resolver) -> None:
    lookups = Lookups(threads=1, most=2)
    local = (ip_address("127.0.0.1"),)
    assert lookups.ask("known.test").result(1 + HELD_UP) == local
    *_, beyond = [lookups.ask(f"{number}.hangs") for number in range(3)]
    assert lookups.ask("known.test").result(1 + HELD_UP) == local
    assert not beyond.done()


def test_names_that_answered_once_have_a_bound_too(resolver: Resolver) -> None:
    """Whoever answers for them may stop to."""
    lookups = Lookups(threads=1, most=2)
    resolver.lets_go.set()
    names = [f"{number}.hangs" for number in range(2)]
    for name in names:
        lookups.ask(name).result(1 + HELD_UP)
    resolver.lets_go.clear()
    hanging = [lookups.ask(name) for name in names]
    assert lookups.ask("known.test").result(1 + HELD_UP) == (ip_address("127.0.0.1"),), "it was not prompt before"
    beyond = lookups.ask("known.test")
    resolver.lets_go.set()
    assert all(one.result(1 + HELD_UP) for one in hanging)
    assert lookups.ask("known.test").result(1 + HELD_UP)
    assert not beyond.done()


def test_of_names_that_were_prompt_those_that_are_asked_for_stay_known(resolver: Resolver) -> None:
    lookups = Lookups(threads=1, most=2)
    for number in range(6):
        for name in ("known.test", f"{number}.made-up"):
            lookups.ask(name).result(1 + HELD_UP)
    for number in range(2):
        lookups.ask(f"{number}.hangs")
    assert lookups.ask("known.test").result(1 + HELD_UP) == (ip_address("127.0.0.1"),)
