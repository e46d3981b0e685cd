"""Where servers are, by the rule of `security.fleet_networks`, looked up anew for connections: a name that led into the
fleet when its server was registered may lead elsewhere today.
"""

import asyncio
import errno
import socket
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import is_ip_address

from citadel.addresses import Addresses, AddressRefused
from citadel.deadlines import Deadlines


class Resolver(AbstractResolver):
    """aiohttp's question for the addresses of a name."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses that may be called; OSError where there are none, or where one may not."""
        try:
            found = await self._addresses.resolve(host, port)
        except AddressRefused as error:
            raise PermissionError(errno.EACCES, str(error)) from None
        return [_result(host, address, port) for address in found]

    async def close(self) -> None:
        """There is nothing to close."""


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool, to what a `Resolver` gives: the library asks it for names alone, and an address goes unchecked.

    `patience` is what a connection may take, in seconds, once its name has been looked up, anew for each address that
    is tried. It is kept by `Deadlines`: a worker that is busy may be late in seeing that it has been made.
    """

    def __init__(self, addresses: Addresses, patience: float, **options: Any):
        self._checked = Resolver(addresses)
        self._patience = Deadlines(patience)
        super().__init__(resolver=self._checked, **options)

    async def _resolve_host(self, host: str, port: int, traces: Any = None) -> list[ResolveResult]:
        """Where a new connection to a host may go to; OSError as above."""
        if is_ip_address(host):
            return await self._checked.resolve(host, port)
        return await super()._resolve_host(host, port, traces)

    async def _wrap_create_connection(self, *args: Any, **options: Any) -> tuple[asyncio.Transport, ResponseHandler]:
        with self._patience:
            return await super()._wrap_create_connection(*args, **options)


def _result(host: str, address: str, port: int) -> ResolveResult:
    version = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=version, proto=0, flags=socket.AI_NUMERICHOST)
