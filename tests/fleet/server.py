"""The server: a backend, the rules that spoil it, and the ports where both are reached."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator

from .answer import Answer
from .backend.config import Backend
from .backend.errors import error_body
from .backend.routes import is_inference, respond, shape_of
from .connection import Connection
from .listener import Listener, State
from .record import Exchange, Record
from .request import Request
from .rules import Rule, Rules
from .troubles import TroubleSpecError


class BackendSite:
    """What clients meet at the backend's port."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.record = Record()
        self.rules = Rules()
        self.connections: set[Connection] = set()
        self._slots = asyncio.Semaphore(backend.parallel) if backend.parallel else None

    def is_deaf(self) -> bool:
        """Whether a behaviour says that this new connection is never read."""
        return bool(self.rules.for_connection())

    def reply(self, request: Request, exchange: Exchange) -> Answer:
        """The backend's answer with the troubles in force laid on it."""
        try:
            return self._reply(request, exchange)
        except TroubleSpecError as error:
            return Answer.of_json({"error": {"message": str(error), "type": "fleet_error", "code": 400}}, 400)
        except Exception:  # the outermost edge: like any server, answer 500 and live on
            traceback.print_exc()
            return Answer.of_json(error_body(shape_of(self.backend, request.path), 500, "crash"), 500)

    def _reply(self, request: Request, exchange: Exchange) -> Answer:
        if request.too_large:
            return Answer.of_json({"error": {"message": "the body is too large", "code": 413}}, 413)
        troubles = self.rules.for_request(request)
        answer = respond(self.backend, request)
        for trouble in troubles:
            trouble.apply(answer, request, self.backend)
            exchange.behaviours.append(trouble.name)
        self.backend.answered += 1
        return answer

    @contextlib.asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """A slot of the backend; pages need none."""
        if not is_inference(request):
            yield
            return
        self.backend.busy += 1
        try:
            async with self._slots or contextlib.nullcontext():
                yield
        finally:
            self.backend.busy -= 1


class Server:
    """One backend on its port, with its behaviours."""

    def __init__(self, backend: Backend, host: str, port: int) -> None:
        self.site = BackendSite(backend)
        self.listener = Listener(host, port, lambda: Connection(self.site))

    async def behave(self, rule: Rule) -> None:
        """Put a rule in force; raises TroubleSpecError."""
        self.site.rules.add(rule)
        await self._listen()

    async def behave_well(self) -> None:
        """Drop all rules."""
        self.site.rules.clear()
        await self._listen()

    async def start(self) -> None:
        """Listen, as the rules say."""
        await self._listen()

    async def _listen(self) -> None:
        """Bring the listening socket and the open connections to what the rules say."""
        wanted = self.site.rules.listener
        states: dict[str, State] = {"refuse": "refuse", "silent_host": "silent_host"}
        await self.listener.become("open" if wanted is None else states[wanted.name])
        existing = getattr(wanted, "existing", "thaw")
        for connection in list(self.site.connections):
            if existing == "close":
                connection.close()
            elif existing == "freeze":
                connection.freeze()
            elif existing == "thaw":
                connection.thaw()
