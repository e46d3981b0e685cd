"""Redis on the path of a request: one connection, every call pipelined, every call bounded in time.

A client library spends 150 to 250 µs on an awaited call, most of it in connection pooling and retries that this path
must not have; hiredis parses, the rest is a queue of futures. When Redis is slow it counts as gone: all waiting calls
fail together after `timeout`, the connection is dropped, and calls fail at once until it is back. What held the worker
itself up is no silence of Redis's.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
import structlog

from citadel.logs import Trouble
from citadel.redis_address import Address

log = structlog.get_logger("citadel.redis")

RECONNECT = (0.05, 1.0)
"""First and longest pause between attempts to reconnect, in seconds. A connection that does not last for as long as the
longest is no reason to begin anew with the first."""
SECOND_LOOK = 0.02
"""Seconds before its time is over in which a call is looked at, to look again then: a worker that was busy may not have
read its reply. Only when the second look is not late itself has it been read all the same."""
Argument = str | bytes | int | float


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
        absence, is_told_connected = Trouble(), False
        while True:
            begun = math.inf
            try:
                self._link = await self._connect()
                begun = time.monotonic()
                if not is_told_connected:
                    log.info("redis_connected", instance=self._name)
                    is_told_connected = True
                attempted.set()
                await self._link.lost
            except (OSError, TimeoutError, RedisError) as error:
                if time.monotonic() - begun > longest:
                    pause = RECONNECT[0]
                    absence.is_over()
                if absence.is_news():
                    log.warning("redis_unavailable", instance=self._name, reason=str(error) or type(error).__name__)
                    is_told_connected = False
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


async def ask_once(url: str, seconds: float) -> None:
    """Connects once as the workers do; OSError, TimeoutError or RedisError."""
    address = Address(url)
    async with asyncio.timeout(seconds):
        link = await address.connect(lambda: _Link(seconds))
        try:
            for command in address.greeting():
                await link.call(command)
        finally:
            link.close(RedisUnavailable("closed"))


class _Link(asyncio.Protocol):
    """One open connection: replies come in the order of the commands (RESP2)."""

    def __init__(self, timeout: float):
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, asyncio.Future[Any] | None]] = deque()
        """When each command was sent, and who waits for its reply."""
        self._timeout = timeout
        self._watch: asyncio.TimerHandle | None = None
        self._looked = 0.0
        """When a call's time was last seen to be nearly over."""
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
        self._waiting.append((time.monotonic(), future))  # the loop's own time is that of its turn's beginning
        transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # their stub says a tuple of one
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout - SECOND_LOOK, self._check)

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
        now = time.monotonic()
        left = self._waiting[0][0] + self._timeout - now
        if left > SECOND_LOOK:
            self._watch = self._loop.call_later(left - SECOND_LOOK, self._check)
        elif now - self._looked > 2 * SECOND_LOOK:
            self._looked = now
            self._watch = self._loop.call_later(SECOND_LOOK, self._check)
        elif left > 0:
            self._watch = self._loop.call_later(left, self._check)
        else:
            self.close(RedisUnavailable(f"no answer within {self._timeout:g} s"))
