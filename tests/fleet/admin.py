"""The admin surface, on a port of its own, so that it works while the backend refuses connections.

``GET|POST|DELETE /fleet/behave``, ``GET|DELETE /fleet/log``, ``GET /fleet/state``, ``GET /fleet/catalogue``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from .answer import Answer
from .connection import Connection
from .record import Exchange, Record, Visit
from .request import Request
from .rules import Rule
from .server import Server
from .troubles import CATALOGUE, TroubleSpecError

Page = Callable[[Request], Awaitable[Answer]]


class AdminSite:
    """What is answered at the admin port."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.record = Record()
        self.connections: set[Connection] = set()
        self._pages: dict[tuple[str, str], Page] = {
            ("GET", "/fleet/behave"): self._rules,
            ("POST", "/fleet/behave"): self._behave,
            ("DELETE", "/fleet/behave"): self._behave_well,
            ("GET", "/fleet/log"): self._log,
            ("DELETE", "/fleet/log"): self._clear,
            ("GET", "/fleet/state"): self._state,
            ("GET", "/fleet/catalogue"): self._catalogue,
        }

    def is_deaf(self) -> bool:
        """Never."""
        return False

    @contextlib.asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """No limit."""
        yield

    async def reply(self, request: Request, exchange: Exchange) -> Answer:
        """Route a request."""
        page = self._pages.get((request.method, request.path))
        return await page(request) if page else Answer.of_json({"error": __doc__}, 404)

    async def _rules(self, request: Request) -> Answer:
        return Answer.of_json(self._server.site.rules.in_force())

    async def _behave(self, request: Request) -> Answer:
        try:
            await self._server.behave(msgspec.json.decode(request.body, type=Rule))
        except (msgspec.MsgspecError, TroubleSpecError) as error:
            return Answer.of_json({"error": str(error)}, 400)
        return await self._rules(request)

    async def _behave_well(self, request: Request) -> Answer:
        await self._server.behave_well()
        return await self._rules(request)

    async def _log(self, request: Request) -> Answer:
        return Answer.of_json(_log(self._server.site.record, request.query))

    async def _clear(self, request: Request) -> Answer:
        self._server.site.record.clear()
        return Answer.of_json([])

    async def _state(self, request: Request) -> Answer:
        return Answer.of_json(self._server.site.record.state(self._server.listener.state))

    async def _catalogue(self, request: Request) -> Answer:
        return Answer.of_json({name: catalogue_entry(name) for name in sorted(CATALOGUE)})


def catalogue_entry(name: str) -> dict[str, Any]:
    """What a trouble does and which fields it has, with their defaults."""
    cls = CATALOGUE[name]
    return {"about": " ".join((cls.__doc__ or "").split()), "fields": msgspec.to_builtins(cls())}


def _log(record: Record, query: dict[str, str]) -> list[Exchange | Visit]:
    """Requests and connections in the order of their beginning; ``what=requests|connections`` gives one kind."""
    exchanges: list[Exchange | Visit] = [] if query.get("what") == "connections" else list(record.exchanges)
    visits: list[Exchange | Visit] = [] if query.get("what") == "requests" else list(record.visits)
    return sorted([*exchanges, *visits], key=lambda entry: entry.id)
