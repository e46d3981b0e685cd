"""One probe of one server: its health page and what it tells of its load, or only whether it takes a connection.

What is asked loads no model and pins none in memory: the dialects see to that. Each probe makes its own connection.
"""

import asyncio
import errno
import socket
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.helpers import is_ip_address

from apps.orchestration.dialects import DIALECTS, Dialect
from apps.orchestration.discovery import NO_PAGE
from apps.orchestration.fleet import Server
from apps.orchestration.health.conditions import UNKNOWN, Load
from apps.orchestration.health.states import Outcome
from citadel import descriptors, hop
from citadel.addresses import Addresses, AddressRefused, NoAddress, of_fleet
from citadel.sections import USUAL_PORTS, Config

LARGEST_PAGE = 1024 * 1024
"""Of a longer one the status alone is taken: a list of models may be one, that is read where models are asked for."""
HEALTHY = Outcome()
SICK = frozenset({"error", "fail", "failed", "failing", "unhealthy", "down", "unavailable", "loading model"})
"""What health pages say with a status of 200 and mean the opposite."""
STRAINED = frozenset({"degraded", "warn", "warning"})
ABSENT: Mapping[str, frozenset[int]] = MappingProxyType({"http": frozenset({401, 403, 404, 405}), "openai": NO_PAGE})
"""By kind, what says nothing against a server whose health page nobody has named: it need not have one."""
NO_FAULT_OF_THE_SERVER = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class Probes:
    """This process's way to ask servers how they are; within the event loop that it is started in."""

    def __init__(self, config: Config):
        self._timeout = config.health.timeout
        self._connect_timeout = config.timeouts.server_connect
        self._addresses = of_fleet(config)
        self._headers = hop.introduction(config.secret, "probe")
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Makes the client."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True, resolver=_Checked(self._addresses))
        timeout = aiohttp.ClientTimeout(total=self._timeout, sock_connect=self._connect_timeout)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)

    async def stop(self) -> None:
        """Closes it."""
        if self._session:
            await self._session.close()

    async def probe(self, server: Server) -> tuple[Outcome | None, Load]:
        """How a server is, and its load as far as it tells it; None where the probe says nothing about the server."""
        dialect = DIALECTS[server.kind]
        begun = time.monotonic()
        try:
            status, page = await self._get(server, _page_of(server, dialect))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return failure_of(error), UNKNOWN
        elapsed = round((time.monotonic() - begun) * 1000)
        outcome = judged(server, status, page, elapsed)
        if outcome.failure:
            return outcome, UNKNOWN
        return outcome, await self._load(server, dialect, begun + self._timeout - time.monotonic())

    async def connect(self, server: Server) -> Outcome | None:
        """Whether a server takes a connection, at any of its addresses; None where that can't be said."""
        try:
            host, port = _place(server)
            addresses = await self._addresses.resolve(host, port)
        except (OSError, ValueError) as error:
            return failure_of(error)
        tries = [asyncio.ensure_future(_connect_to(one, port, self._connect_timeout)) for one in addresses]
        failure: Outcome | None = None
        try:
            for done in asyncio.as_completed(tries):
                outcome = await done
                if outcome == HEALTHY:
                    return outcome
                failure = failure or outcome
        finally:
            for one in tries:
                one.cancel()
        return failure

    async def _get(self, server: Server, path: str) -> tuple[int, bytes]:
        """Status and page; a page that is too long to be read is an empty one."""
        if not self._session:
            raise RuntimeError("not started")
        host, port = _place(server)
        if is_ip_address(host):  # for which the client asks no resolver
            await self._addresses.resolve(host, port)
        headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        async with self._session.get(f"{server.url}{path}", headers=headers, allow_redirects=False) as response:
            page = bytearray()
            async for piece in response.content.iter_any():
                page += piece
                if len(page) > LARGEST_PAGE:
                    return response.status, b""
            return response.status, bytes(page)

    async def _load(self, server: Server, dialect: Dialect, within: float) -> Load:
        """What there is to be had in the rest of the time; a page that fails says nothing."""
        named = server.metrics_endpoint
        answers: dict[str, Any] = {}
        try:
            async with asyncio.timeout(max(0.0, within)):
                for path in dict.fromkeys((*dialect.load_paths, named)):
                    if path not in dialect.load_paths and (not path or dialect.may_sleep(answers)):
                        continue
                    status, page = await self._get(server, path)
                    if status < 300:
                        answers[path] = _read(page)
        except (aiohttp.ClientError, OSError, ValueError):
            pass
        return dialect.read_load(MappingProxyType(answers)) if answers else UNKNOWN


async def _connect_to(address: str, port: int, within: float) -> Outcome | None:
    try:
        async with asyncio.timeout(within):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return Outcome("connect_timeout")
    except OSError as error:
        return failure_of(error)
    writer.transport.abort()
    return HEALTHY


class _Checked(AbstractResolver):
    """Looks names up for the client, and lets it have only those that may be called."""

    def __init__(self, addresses: Addresses):
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name; AddressRefused, OSError."""
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_UNSPEC, proto=0, flags=0)
            for address in await self._addresses.resolve(host, port)
        ]

    async def close(self) -> None:
        """There is nothing to close."""


def _page_of(server: Server, dialect: Dialect) -> str:
    """What a probe asks: where a kind has but its list of models for that, the list that somebody has named."""
    listed = server.models_endpoint if dialect.health_path == dialect.models_path else ""
    return server.health_endpoint or listed or dialect.health_path


def _place(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname or "", parts.port or USUAL_PORTS[parts.scheme]


def failure_of(error: Exception) -> Outcome | None:
    """What an exception says of the server, in the words that the traffic has for it; None where it says nothing."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and (cause.errno in NO_FAULT_OF_THE_SERVER or descriptors.none_left()):
        return None
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return Outcome(reason)
    return Outcome(f"malformed: {type(error).__name__}")


_REASONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (AddressRefused, "address_refused"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout"),
    (TimeoutError, "timeout"),
    ((aiohttp.ClientConnectorDNSError, NoAddress), "no_address"),
    (aiohttp.ClientConnectorCertificateError, "bad_certificate"),
    (aiohttp.ClientSSLError, "tls_failed"),
    ((aiohttp.ClientConnectorError, ConnectionRefusedError), "refused"),
    ((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError), "disconnected"),
    ((aiohttp.ClientOSError, ConnectionError), "disconnected"),
    (OSError, "refused"),  # no way there
)
"""The first that fits."""


def _had_list(server: Server) -> bool:
    """Whether the page that a probe asks is the list of models, and that has been there."""
    dialect = DIALECTS[server.kind]
    return server.listed and dialect.health_path == dialect.models_path


def judged(server: Server, status: int, page: bytes, response_ms: int) -> Outcome:
    """What the answer to a probe says. Of a plain web server any page will do, the way to another and the
    absence of one too; who speaks OpenAI's API may have no list of models, but sends nobody elsewhere,
    and where a list was found there before, it is somebody else who answers now.
    """
    if not server.health_endpoint and status in ABSENT.get(server.kind, ()) and not _had_list(server):
        return Outcome(response_ms=response_ms)
    if status >= (400 if server.kind == "http" else 300):
        return Outcome(f"status_{status}", response_ms=response_ms)
    told = _read(page)
    word = told.get("status") if isinstance(told, Mapping) else None
    word = word.lower() if isinstance(word, str) else ""
    if word in SICK or (isinstance(told, Mapping) and told.get("error")):
        return Outcome("says_so", response_ms=response_ms)
    return Outcome(strain="says_so" if word in STRAINED else "", response_ms=response_ms)


def _read(page: bytes) -> Any:
    try:
        return msgspec.json.decode(page)
    except (msgspec.DecodeError, RecursionError):
        return page.decode(errors="replace")
