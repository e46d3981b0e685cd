"""How a web worker begins and ends. At its end it takes no new connections, answers what comes on those that it has,
and lets go of each.

Uvicorn would close idle connections at once, and so lose the request that a client is just sending on one of them: no
client sends a POST twice by itself. Here each connection ends with an answer that says so, or after it has been idle
for longer than clients use a connection again (see `protocol.py`). At SIGINT, by which all of Citadel ends, it ends as
soon as it is idle: nobody would take that request.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import structlog
import uvicorn

from citadel.protocol import Protocol as HTTP

log = structlog.get_logger("citadel.draining")

WORKER = "citadel.worker"
"""Under which the application puts its `Worker` into the state of its life (ASGI, "Lifespan State")."""
LOOK_EVERY = 0.05
TICKS = 10
"""Of uvicorn's in a second."""
LAST_WORDS = 2.0
"""Seconds for what has been cut to tell its client."""


class Worker(Protocol):
    """What the application is told of its end."""

    def drain(self) -> None:
        """It begins: say that nobody should send anything any more."""

    def cut(self) -> None:
        """What still runs is cancelled now."""

    def connected(self, count: int, refused: int) -> None:
        """So many connections are open, and so many were too many since it was last told."""


class Server(uvicorn.Server):
    """Uvicorn's server with an end that loses nothing; it calls `tell_ready` once it serves."""

    def __init__(self, config: uvicorn.Config, tell_ready: Callable[[], None]):
        super().__init__(config)
        self._tell_ready = tell_ready
        self._all_end = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take connections."""
        await super().startup(sockets)
        if self.started:
            self._tell_ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second while it serves: tells the worker of its connections, each tenth time."""
        if not counter % TICKS and (worker := self._worker()):
            refused, HTTP.refused = HTTP.refused, 0
            if refused:
                log.warning("connections_refused", count=refused)
            worker.connected(len(self.server_state.connections), refused)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM: others go on. SIGINT: they end too; a second one cuts everything off."""
        if sig == signal.SIGINT and not self._all_end:
            self._all_end, HTTP.last_call = True, 0
            if self.should_exit:  # it was ending by itself, and uvicorn would take this for the second
                return
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # it would raise them again at the end, which is an orderly one
        if self.started and (worker := self._worker()):
            worker.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets what runs end, for as long as it may, and cuts the rest."""
        worker = self._worker()
        if worker:
            worker.drain()
        for server in self.servers:
            server.close()
        for public in sockets or ():
            public.close()
        log.info("draining", connections=len(self.server_state.connections))
        if not await self._let_end(self.config.timeout_graceful_shutdown or 0.0):
            await self._cut(worker)
        for connection in list(self.server_state.connections):
            connection.transport.close()
        await self.lifespan.shutdown()

    def _worker(self) -> Worker | None:
        worker: Worker | None = self.lifespan.state.get(WORKER)
        return worker

    async def _let_end(self, within: float) -> bool:
        """Whether all connections have ended by themselves, in so many seconds."""
        state, loop = self.server_state, asyncio.get_running_loop()
        deadline = loop.time() + within
        while (state.connections or state.tasks) and not self.force_exit:
            if loop.time() >= deadline:
                return False
            for connection in list(state.connections):  # each time: some were being accepted when it began
                connection.shutdown()
            await asyncio.sleep(LOOK_EVERY)
        return True

    async def _cut(self, worker: Worker | None) -> None:
        """Ends what has had its time."""
        tasks = list(self.server_state.tasks)
        if not tasks:
            return
        log.warning("answers_cut", count=len(tasks))
        if worker:
            worker.cut()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=LAST_WORDS)
