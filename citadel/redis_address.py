"""Where Redis is: a URL read into a host, a port, a database, credentials and TLS."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from citadel.sections import UNESCAPED, ConfigError

Protocol = TypeVar("Protocol", bound=asyncio.BaseProtocol)


class Address:
    """Where a Redis URL leads: `redis://`, `rediss://` (TLS) or `unix://`, with the OPTIONS in its query.

    ConfigError when it leads nowhere. It quotes nothing of the URL: what is mistaken for a port may be a password.
    """

    OPTIONS = ("db", "username", "password")
    TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs")

    def __init__(self, url: str):
        try:
            parts = urlsplit(url)
            port = parts.port
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise ConfigError(f"its host, port or options can't be read; {UNESCAPED}") from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ConfigError("it must begin with redis://, rediss:// (TLS) or unix://, as in redis://host:6379/0")
        self.path = unquote(parts.path) if parts.scheme == "unix" else None
        self.host = parts.hostname or "127.0.0.1"
        self.port = port or 6379
        self.username = unquote(parts.username or "") or query.get("username")
        self.password = unquote(parts.password or "") or query.get("password")
        self.database = self._database(query.get("db") or ("" if self.path else parts.path.strip("/")) or "0")
        self.tls = self._tls(query) if parts.scheme == "rediss" else None
        self._check(parts, query)

    def greeting(self) -> list[tuple[str | int, ...]]:
        """The commands that open a connection."""
        commands: list[tuple[str | int, ...]] = []
        if self.username or self.password:
            commands.append(("AUTH", *([self.username] if self.username else []), self.password or ""))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands

    async def connect(self, protocol: Callable[[], Protocol]) -> Protocol:
        """Opens the transport; OSError when it can't."""
        loop = asyncio.get_running_loop()
        if self.path:
            return (await loop.create_unix_connection(protocol, self.path))[1]
        return (await loop.create_connection(protocol, self.host, self.port, ssl=self.tls))[1]

    def _check(self, parts: SplitResult, query: Mapping[str, str]) -> None:
        if parts.fragment:
            raise ConfigError(f"there is a '#' in it; {UNESCAPED}")
        if self.path == "" or (self.path and parts.hostname):
            raise ConfigError("unix:// is followed by an absolute path: unix:///run/redis.sock")
        known = (*self.OPTIONS, *(self.TLS_OPTIONS if self.tls else ()))
        if not query.keys() <= set(known):
            tls = "" if self.tls else f"; those of TLS, {' and '.join(self.TLS_OPTIONS)}, belong to rediss://"
            raise ConfigError(f"it has an option other than {', '.join(known)}{tls}")

    def _database(self, text: str) -> int:
        if not (text.isascii() and text.isdecimal()):
            raise ConfigError(f"after the port comes the number of a database, as in redis://host:6379/0; {UNESCAPED}")
        return int(text)

    def _tls(self, query: Mapping[str, str]) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
        except OSError as error:
            raise ConfigError(f"the file of ssl_ca_certs holds no certificates that can be read: {error}") from None
        verify = query.get("ssl_cert_reqs", "required")
        if verify not in ("required", "none"):
            raise ConfigError("ssl_cert_reqs is required or none")
        if verify == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
