"""The ASGI application: the data plane by the lean handler, console and static files by Django's own."""

import gc
import os
from collections.abc import Awaitable, Mapping
from functools import partial

import structlog

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "citadel.settings")

from django.core.asgi import get_asgi_application

django = get_asgi_application()

from apps.gateway import metrics  # noqa: E402  # Django must be set up first
from apps.gateway.access import refusals  # noqa: E402
from apps.gateway.access.beforehand import room_for  # noqa: E402
from apps.gateway.access.lasting import held  # noqa: E402
from apps.gateway.runtime import Runtime  # noqa: E402
from apps.orchestration.consumers import ConsoleSocket, nowhere  # noqa: E402
from apps.orchestration.live import Feed  # noqa: E402
from citadel import config, urls  # noqa: E402
from citadel.body import Bodies, Receive, Scope, Send  # noqa: E402
from citadel.console import Console  # noqa: E402
from citadel.database import address  # noqa: E402
from citadel.draining import WORKER  # noqa: E402
from citadel.guard import Guard  # noqa: E402
from citadel.handler import Handler  # noqa: E402

log = structlog.get_logger("citadel.asgi")


class Application:
    """Takes whatever the server brings: requests, WebSockets, and the worker's start and end."""

    def __init__(self) -> None:
        self._guard: Guard | None = None
        self._bodies = Bodies(config.load())
        self._console = Console(django, config.load(), self._bodies)  # type: ignore[arg-type]  # asgiref's own names for the same
        self._runtime: Runtime | None = None
        self._feed: Feed | None = None
        self._sockets: Mapping[str, ConsoleSocket] = {}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """One request, a WebSocket, or the worker's life."""
        if scope["type"] == "lifespan":
            return self._live(scope, receive, send)
        if scope["type"] == "websocket":
            return self._sockets.get(scope["path"], nowhere)(scope, receive, send)
        if self._guard and scope["path"].startswith(urls.LEAN):
            return self._guard(scope, receive, send)
        return self._console(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starts the parts, serves until told to stop, stops them."""
        await receive()
        try:
            await self._start()
        except Exception as error:  # the outermost edge of a worker's start
            log.exception("start_failed")
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        scope["state"][WORKER] = self._runtime
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._runtime and self._feed:
            await self._feed.stop()
            await self._runtime.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings = config.load()
        self._runtime = Runtime(settings)
        await self._runtime.start()
        room = partial(room_for, runtime=self._runtime)
        refused = partial(refusals.tell, self._runtime)
        self._guard = Guard(Handler(self._runtime), settings, metrics.answered, refused, self._bodies, room)
        self._feed = Feed(self._runtime, address(settings))
        credential = partial(held, runtime=self._runtime)
        parts = (self._feed, credential, metrics.CONSOLE_SOCKETS.set, refused)
        self._sockets = {path: socket(*parts) for path, socket in urls.SOCKETS.items()}
        _calm_the_collector()


def _calm_the_collector() -> None:
    """What is there now stays: a full collection would walk all of it and stop the worker for 30 to 40 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)


application = Application()
