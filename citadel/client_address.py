"""From where a request comes: the connection's other end, or what a trusted proxy says of it."""

from collections.abc import Mapping, MutableMapping, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from citadel.addresses import Addresses, meant
from citadel.names import IP

MOST_STEPS = 32
"""Proxies that a request may pass: what stands further back is not looked at."""


class Proxies:
    """Which proxies are believed: networks as in `server.trusted_proxies`."""

    def __init__(self, networks: Sequence[str]):
        self._trusted = Addresses(networks) if networks else None

    def is_trusted(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether the connection's other end is one of them: what it says of the client is believed."""
        peer = scope.get("client")
        address = _parsed(peer[0]) if peer else None
        return self._trusted is not None and address is not None and is_within(self._trusted, address)

    def client(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> IP | None:
        """The client's address; None where there is none, as on a socket's path, or where a proxy names none.

        Each proxy adds to `X-Forwarded-For` who has asked it, so the list is read from its end: whom a trusted proxy
        names is believed, and asked further as long as it is a trusted proxy itself. What a client writes into it
        stands before that.
        """
        peer = scope.get("client")
        address = _parsed(peer[0]) if peer else None
        told = headers.get(b"x-forwarded-for", b"").decode("latin-1").strip()
        said = told.split(",")[-MOST_STEPS:] if told else []
        while self._trusted and said and address is not None and is_within(self._trusted, address):
            address = _parsed(said.pop())
        return address


def is_within(rule: Addresses, address: IP) -> bool:
    """Whether a rule holds for who comes from there. An IPv6 address that means an IPv4 one where Citadel connects to
    it (NAT64, 6to4) means nothing of that kind where somebody comes from it.
    """
    return meant(address) == address and rule.permits(address)


def network_of(address: IP | None) -> str:
    """Under which a client is counted: of IPv6 what one has to itself; all whose address can't be known are one."""
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else str(address or "")


def _parsed(text: str) -> IP | None:
    """An address; some proxies write its port too, and a system that listens on both writes IPv4 as IPv6."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped or IPv6Address(int(found))  # without a zone
    return found
