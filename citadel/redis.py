"""Redis on the path of a request: one connection, every call pipelined, every call bounded in time.

A client library spends 150 to 250 µs on an awaited call, most of it in connection pooling and retries that this path
must not have; hiredis parses, the rest is a queue of futures. When Redis is slow it counts as gone: all waiting calls
fail together after `timeout`, the connection is dropped, and calls fail at once until it is back.
"""

import asyncio
import contextlib
import hashlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import hiredis
import structlog

from citadel.sections import UNESCAPED, ConfigError

log = structlog.get_logger("citadel.redis")

TURNS = 3
"""Turns of the event loop for which questions gather before a call goes out."""
RECONNECT = (0.05, 1.0)
"""First and longest pause between attempts to reconnect, in seconds."""
Argument = str | bytes | int | float
Asked = TypeVar("Asked")
Told = TypeVar("Told")


class RedisError(Exception):
    """Redis has not done what it was asked."""


class RedisUnavailable(RedisError):
    """It can't be reached, or did not answer in time."""


class RedisRefused(RedisError):
    """It has answered with an error, whose text the message is."""


class Redis:
    """A connection that reconnects by itself. `url` is redis://, rediss:// or unix://; `database` overrides its own."""

    def __init__(self, url: str, *, timeout: float, connect_timeout: float, name: str, database: int | None = None):
        self._address = Address(url)
        if database is not None:
            self._address.database = database
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._name = name
        self._link: _Link | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether calls are answered at the moment."""
        return self._link is not None

    async def start(self) -> None:
        """Connects and stays connected; returns after the first attempt, whether it worked or not."""
        attempted = asyncio.Event()
        self._task = asyncio.create_task(self._stay_connected(attempted), name=f"redis {self._name}")
        await attempted.wait()

    async def stop(self) -> None:
        """Closes the connection; what still waits fails."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._link:
            self._link.close(RedisUnavailable("closed"))

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """Sends one command. The future gives the reply, or a RedisError."""
        if self._link is None:
            raise RedisUnavailable(self._name)
        return self._link.call(command)

    def tell(self, *command: Argument) -> None:
        """Sends one command whose outcome nobody waits for; lost where Redis is."""
        if self._link is not None:
            self._link.tell(command)

    async def script(self, script: "Script", arguments: Sequence[Argument], keys: int = 0) -> Any:
        """Runs a script, loading it where Redis has forgotten it. The first `keys` arguments are its keys."""
        try:
            return await self.call("EVALSHA", script.digest, keys, *arguments)
        except RedisRefused as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await self.call("EVAL", script.text, keys, *arguments)

    async def _stay_connected(self, attempted: asyncio.Event) -> None:
        pause, longest = RECONNECT
        while True:
            try:
                self._link = await self._connect()
                log.info("redis_connected", instance=self._name)
                pause = RECONNECT[0]
                attempted.set()
                await self._link.lost
            except (OSError, TimeoutError, RedisError) as error:
                log.warning("redis_unavailable", instance=self._name, reason=str(error) or type(error).__name__)
            self._link = None
            attempted.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _connect(self) -> "_Link":
        async with asyncio.timeout(self._connect_timeout):
            link = await self._address.connect(lambda: _Link(self._timeout))
            try:
                for command in self._address.greeting():
                    await link.call(command)
            except BaseException:
                link.close(RedisUnavailable("refused"))
                raise
            return link


class Script:
    """A Lua script, known to Redis by its SHA-1."""

    def __init__(self, text: str):
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


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

    def greeting(self) -> list[tuple[Argument, ...]]:
        """The commands that open a connection."""
        commands: list[tuple[Argument, ...]] = []
        if self.username or self.password:
            commands.append(("AUTH", *([self.username] if self.username else []), self.password or ""))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("PING",))
        return commands

    async def connect(self, protocol: "Callable[[], _Link]") -> "_Link":
        """Opens the transport; OSError when it can't."""
        loop = asyncio.get_running_loop()
        if self.path:
            return (await loop.create_unix_connection(protocol, self.path))[1]
        return (await loop.create_connection(protocol, self.host, self.port, ssl=self.tls))[1]

    async def ask(self, seconds: float) -> None:
        """Connects once as the workers do; OSError, TimeoutError or RedisError."""
        async with asyncio.timeout(seconds):
            link = await self.connect(lambda: _Link(seconds))
            try:
                for command in self.greeting():
                    await link.call(command)
            finally:
                link.close(RedisUnavailable("closed"))

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


class _Link(asyncio.Protocol):
    """One open connection: replies come in the order of the commands (RESP2)."""

    def __init__(self, timeout: float):
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, asyncio.Future[Any] | None]] = deque()
        """When each command was sent, and who waits for its reply."""
        self._timeout = timeout
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio gives a Transport for streams

    def call(self, command: tuple[Argument, ...]) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            future.set_exception(RedisUnavailable("connection lost"))
        else:
            self._send(self._transport, command, future)
        return future

    def tell(self, command: tuple[Argument, ...]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._send(self._transport, command, None)

    def _send(
        self, transport: asyncio.Transport, command: tuple[Argument, ...], future: "asyncio.Future[Any] | None"
    ) -> None:
        self._waiting.append((self._loop.time(), future))
        transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # their stub says a tuple of one
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout, self._check)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            future = self._waiting.popleft()[1]
            if future is None or future.done():
                continue
            if isinstance(reply, hiredis.ReplyError):
                future.set_exception(RedisRefused(str(reply)))
            else:
                future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(RedisUnavailable(str(exc) if exc else "connection lost"))

    def close(self, reason: RedisUnavailable) -> None:
        """Fails everything that waits and drops the connection."""
        if self._watch:
            self._watch.cancel()
        while self._waiting:
            future = self._waiting.popleft()[1]
            if future is not None and not future.done():
                future.set_exception(reason)
                future.exception()  # the caller may have gone: that is no news for the log
        if not self.lost.done():
            self.lost.set_exception(reason)
            self.lost.exception()
        if self._transport:
            self._transport.abort()

    def _check(self) -> None:
        """Looks at the oldest call: one timer for all of them."""
        self._watch = None
        if not self._waiting:
            return
        left = self._waiting[0][0] + self._timeout - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._check)
        else:
            self.close(RedisUnavailable(f"no answer within {self._timeout:g} s"))


class Gathering(Generic[Asked, Told]):
    """Lets all who ask at about the same time share one call.

    A call goes out a few turns of the event loop after the first question, and not while another is under way: an
    idle worker waits microseconds, one under load makes few large calls instead of many small ones. `send` gets the
    questions and gives as many answers, in their order. `unclaimed` is told of an answer whose asker has gone.
    """

    def __init__(
        self,
        send: Callable[[list[Asked]], Awaitable[Sequence[Told]]],
        unclaimed: Callable[[Asked, Told], None] = lambda _question, _answer: None,
    ):
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._unclaimed = unclaimed
        self._asked: list[tuple[Asked, asyncio.Future[Told]]] = []
        self._under_way = False
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def ask(self, question: Asked) -> "asyncio.Future[Told]":
        """The answer to come; fails as the shared call fails."""
        future: asyncio.Future[Told] = self._loop.create_future()
        self._asked.append((question, future))
        self.nudge()
        return future

    def nudge(self) -> None:
        """Has `send` called soon, even if nobody asks."""
        if not self._under_way:
            self._under_way = True
            self._loop.call_soon(self._wait, TURNS)
        else:
            self._again = True

    def _wait(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._wait, turns - 1)
        else:
            self._again = False
            self._task = self._loop.create_task(self._call())

    async def _call(self) -> None:
        asked, self._asked = self._asked, []
        try:
            answers = await self._send([question for question, _ in asked])
        except RedisError as error:
            _fail(asked, error)
        else:
            self._tell(asked, answers)
        finally:
            self._under_way = False
            if self._again:
                self.nudge()

    def _tell(self, asked: list[tuple[Asked, "asyncio.Future[Told]"]], answers: Sequence[Told]) -> None:
        for (question, future), answer in zip(asked, answers, strict=True):
            if future.done():
                self._unclaimed(question, answer)
            else:
                future.set_result(answer)


def _fail(asked: Sequence[tuple[object, "asyncio.Future[Told]"]], error: Exception) -> None:
    for _, future in asked:
        if not future.done():
            future.set_exception(error)
            future.exception()  # whoever still waits gets it; nobody else need hear of it
