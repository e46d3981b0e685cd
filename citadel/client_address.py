"""From where a request comes: the connection's other end, or what a trusted proxy says of it."""

from collections.abc import Mapping, MutableMapping, Sequence
from ipaddress import ip_address
from typing import Any

from citadel.addresses import IP, Addresses, meant

MOST_STEPS = 32
"""Proxies that a request may pass: what stands further back is not looked at."""


class Proxies:
    """Which proxies are believed: networks as in `server.trusted_proxies`."""

    def __init__(self, networks: Sequence[str]):
        self._trusted = Addresses(networks) if networks else None

    def client(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> IP | None:
        """The client's address; None where there is none, as on a socket's path.

        Each proxy adds to `X-Forwarded-For` who has asked it, so the list is read from its end: whom a trusted proxy
        names is believed, and asked further as long as it is a trusted proxy itself. What a client writes into it
        stands before that.
        """
        peer = scope.get("client")
        address = _parsed(peer[0]) if peer else None
        if self._trusted is None or address is None:
            return address
        said = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[-MOST_STEPS:]
        while said and self._trusted.permits(address):
            before = _parsed(said.pop())
            if before is None:  # a proxy that doesn't know, or a word that is no address: its own is the last one known
                break
            address = before
        return address


def _parsed(text: str) -> IP | None:
    try:
        return meant(ip_address(text.strip()))
    except ValueError:
        return None
