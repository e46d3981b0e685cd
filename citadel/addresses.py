"""Which addresses Citadel may call: resolved once, checked, and connected to as they were checked.

Servers of the fleet stand in `security.fleet_networks`, subscribers of webhooks in `security.webhook_networks`: words
(`loopback`, `private`, `public`) and networks in CIDR notation. Whatever those say, nothing leads to link-local
addresses, where clouds keep the machines' credentials, or to the databases Citadel itself stands on.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx
import psutil

from citadel import security_log
from citadel.database import parameters
from citadel.names import IP, Lookups
from citadel.redis_address import Address as RedisAddress
from citadel.sections import USUAL_PORTS, Config, ConfigError
from citadel.security_log import Event

Network = IPv4Network | IPv6Network

RESOLVE_WITHIN = 3.0
"""Seconds after which a name counts as unknown."""
MOST_ADDRESSES = 8
"""Of one name: more are not tried."""
NEXT_AFTER = 1.0
"""Seconds without a connection after which a name's next address is tried."""
POSTGRESQL_PORT = 5432


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


# Listed, since what Python calls private has changed from release to release (bpo-113171).
LOOPBACK = _networks("127.0.0.0/8", "::1/128")
PRIVATE = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
"""RFC 1918 and 4193, and the addresses that providers and overlay networks share among their machines (RFC 6598)."""
NEVER = _networks(
    "0.0.0.0/8",  # this machine, by another name
    "169.254.0.0/16",
    "fe80::/10",
    "fec0::/10",
    "224.0.0.0/4",
    "ff00::/8",
    "255.255.255.255/32",
    "::/128",
    # Clouds' metadata outside of the link: AWS, Google, Scaleway, Alibaba (both), Oracle (both), Azure, Akamai.
    "fd00:ec2::/32",
    "fd20:ce::/32",
    "fd00:42::42/128",
    "100.100.100.200/32",
    "fd00:100::100:200/128",
    "192.0.0.0/24",
    "fd00:c1::a9fe:a9fe/128",
    "168.63.129.16/32",
    "fd00:a9fe:a9fe::1/128",
)
NOWHERE = _networks(
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
)
"""Neither private nor public: for tests, examples and nothing yet (RFC 6890). A network in CIDR may name them."""
METADATA_NAMES = frozenset(
    {"metadata.google.internal", "metadata.goog", "metadata.tencentyun.com", "instance-data.ec2.internal"}
)
"""Clouds' own names of it: refused also where nobody knows them yet."""
GLOBAL_IPV6 = ip_network("2000::/3")
"""All that has been given out of IPv6 for the public (IANA); what lies elsewhere is for some special use."""
MAPPED, COMPATIBLE = ip_network("::ffff:0:0/96"), ip_network("::/96")
TRANSLATED = _networks("64:ff9b::/96", "::ffff:0:0:0/96")
TUNNELLED = ip_network("2002::/16")
WORDS = ("loopback", "private", "public")

_lookups = Lookups()


class AddressRefused(ValueError):
    """Where Citadel must not connect to; the message says so for people and tells nothing that they didn't say."""


def _refused(host: str) -> AddressRefused:
    """The error, which the security log hears of as well: somebody wants Citadel to call what it must not."""
    security_log.tell(Event.ADDRESS_REFUSED, host=host)
    return AddressRefused(f"{host!r} leads to an address that may not be called from here")


class NoAddress(OSError):
    """A name that leads nowhere, or not within the time that looking it up may take."""


def check_networks(names: Sequence[str]) -> None:
    """ConfigError unless these are words and networks that can be in a setting."""
    for name in names:
        if name not in WORDS:
            try:
                ip_network(name)
            except ValueError:
                raise ConfigError(
                    f"{name!r} is neither loopback, private or public nor a network like 10.1.0.0/16"
                ) from None


class Addresses:
    """One rule of where to connect to. `allowed` are words and networks; `own` are hosts and ports of Citadel's own."""

    def __init__(self, allowed: Sequence[str], own: Iterable[tuple[str, int]] = ()):
        self._public = "public" in allowed
        self._networks = (
            *(LOOPBACK if "loopback" in allowed else ()),
            *(PRIVATE if "private" in allowed else ()),
            *(ip_network(name) for name in allowed if name not in WORDS),
        )
        self._own = tuple(own)

    def check(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of `host`, all of which may be called; AddressRefused where one may not, NoAddress."""
        asked = self._ask(host, port)
        wait(asked, RESOLVE_WITHIN)
        return self._judged(host, *asked)

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """The same without holding up the event loop."""
        asked = self._ask(host, port)
        if waiting := [asyncio.wrap_future(one) for one in asked if not one.done()]:
            await asyncio.wait(waiting, timeout=RESOLVE_WITHIN)  # which cancels none: others wait for it too
        return self._judged(host, *asked)

    def _ask(self, host: str, port: int) -> list[Future[tuple[IP, ...]]]:
        """Has the host looked up, and those of our own databases that listen on such a port."""
        if host.lower().rstrip(".") in METADATA_NAMES:
            raise _refused(host)
        return [_lookups.ask(name) for name in (host, *(own for own, of in self._own if of == port))]

    def _judged(self, host: str, asked: Future[tuple[IP, ...]], *own: Future[tuple[IP, ...]]) -> tuple[str, ...]:
        if not all(one.done() for one in (asked, *own)):
            raise NoAddress(f"{host!r} was not found in time")
        found = asked.result()[:MOST_ADDRESSES]
        if not found:
            raise NoAddress(f"{host!r} has no address")
        if not all(map(self.permits, found)) or _has_own(found, [address for one in own for address in one.result()]):
            raise _refused(host)
        return tuple(map(str, found))

    def permits(self, address: IP) -> bool:
        """Whether the networks allow it; Citadel's own services apart."""
        address = meant(address)
        if _among(address, NEVER):
            return False
        if _among(address, self._networks):
            return True
        is_global = address.version == 4 or address in GLOBAL_IPV6
        return self._public and is_global and not _among(address, (*LOOPBACK, *PRIVATE, *NOWHERE))


def of_fleet(config: Config) -> Addresses:
    """Where servers of the fleet may be."""
    return Addresses(config.security.fleet_networks, own_services(config))


def of_webhooks(config: Config) -> Addresses:
    """Where events may be sent to."""
    return Addresses(config.security.webhook_networks, own_services(config))


def of_issuers(config: Config, *, in_clear: bool) -> Addresses:
    """Where the keys of tokens' issuers may be asked for; `in_clear`, where nobody is between who could swap them."""
    networks = config.security.issuer_networks
    return Addresses([name for name in networks if not in_clear or name != "public"], own_services(config))


def own_services(config: Config) -> Iterator[tuple[str, int]]:
    """Host and port of each database that Citadel stands on; what is reached by a socket's path has none."""
    if config.database_url:
        given = parameters(config.database_url)
        hosts = (given.get("hostaddr") or given.get("host") or "localhost").split(",")
        ports = given.get("port", "").split(",")
        for number, host in enumerate(hosts):
            if not host.startswith("/"):
                yield host or "localhost", int((ports[number] if len(ports) > 1 else ports[0]) or POSTGRESQL_PORT)
    for url in (config.redis_url, config.redis_cache_url):
        if url and not (address := RedisAddress(url)).path:
            yield address.host, address.port


def meant(address: IP) -> IP:
    """The IPv4 address that an IPv6 one stands for, by mapping (RFC 4291), translation (6052 and 2765) or 6to4 (3056);
    else itself.
    """
    if isinstance(address, IPv4Address):
        return address
    if address in MAPPED or _among(address, TRANSLATED) or (address in COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in TUNNELLED:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return IPv6Address(int(address))  # without a zone


def _among(address: IP, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _has_own(found: Iterable[IP], own: Iterable[IP]) -> bool:
    """Whether one of them is a database's of ours; a machine's addresses are one, since a service may have all."""
    asked, ours = frozenset(map(meant, found)), frozenset(map(meant, own))
    return bool(ours) and (bool(ours & asked) or (_holds_local(ours) and _holds_local(asked)))


def _holds_local(addresses: Iterable[IP]) -> bool:
    """Whether one of them is this machine's."""
    families = (socket.AF_INET, socket.AF_INET6)
    entries = (entry for entries in psutil.net_if_addrs().values() for entry in entries if entry.family in families)
    local = {meant(ip_address(entry.address)) for entry in entries}
    return any(address in local or _among(address, LOOPBACK) for address in addresses)


@cache
def authorities() -> ssl.SSLContext:
    """Whose certificates are believed: the system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name,
    as aiohttp has it; httpx has a list of its own. Made once, since reading them takes long.
    """
    return ssl.create_default_context()


class CheckedTransport(httpx.AsyncBaseTransport):
    """httpx over addresses that were checked: what is connected to is what was looked up, once, for this request."""

    def __init__(self, addresses: Addresses, *, connections: int = 100):
        self._addresses = addresses
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(verify=authorities(), limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer of the host's first address that takes a connection; httpx.TransportError, AddressRefused.

        All but the last have `NEXT_AFTER` for that, the last as long as the request allows.
        """
        host, port = request.url.host, request.url.port or USUAL_PORTS[request.url.scheme]
        try:
            found = await self._addresses.resolve(host, port)
        except NoAddress as error:
            raise httpx.ConnectError(str(error), request=request) from None
        *first, last = found
        for address in first:
            try:
                return await self._transport.handle_async_request(_sent_to(request, address, NEXT_AFTER))
            except (httpx.ConnectError, httpx.ConnectTimeout):  # the latter where packets are dropped, as IPv6 may be
                continue
        return await self._transport.handle_async_request(_sent_to(request, last))

    async def aclose(self) -> None:
        """Closes what is open."""
        await self._transport.aclose()


def _sent_to(request: httpx.Request, address: str, connect_within: float = math.inf) -> httpx.Request:
    """The same request by another way: the name stays in its header `host` and is the one that TLS verifies. Its time
    for the connection is cut to so many seconds.
    """
    url = request.url.copy_with(host=address)
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    if connect_within < math.inf:
        timeout = request.extensions.get("timeout", {})
        given = timeout.get("connect")
        extensions["timeout"] = {**timeout, "connect": connect_within if given is None else min(given, connect_within)}
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
