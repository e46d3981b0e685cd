"""`WS /ws/console`: who may see the fleet watches it (what is said there: `messages.py`).

Whoever may not is told so by a plain HTTP answer, before there is a socket. While there is one the credential is looked
at again and again, and who reads too slowly is let go.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Protocol
from urllib.parse import parse_qs

from ninja import Router

from apps.orchestration.live import Feed
from apps.orchestration.requests import FleetRequest
from citadel.answer import Answer, error_answer, length_of
from citadel.body import Message, Receive, Scope, Send, headers_of
from citadel.caller import Caller
from citadel.context import choose_request_id, request_id
from citadel.errors import (
    BadRequest,
    CitadelError,
    Forbidden,
    LimitExceeded,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from citadel.permissions import SEE_FLEET, require

PATH = "/ws/console"
MOST = 200
"""Sockets of a worker."""
MOST_OF_ONE = MOST // 4
"""Those of one key or person: nobody takes all the room there is for who watches."""
RETRY_AFTER = 10
"""Seconds after which there may be room."""
PATIENCE = 10.0
"""Seconds in which a client takes what it is sent, or is let go."""
CLOSING = 1.0
MOST_FIELDS = 10
LARGEST_ID = 2**63 - 1
NOT_ALLOWED, TOO_SLOW, GOING = 1008, 1013, 1012
"""Why a socket is closed (RFC 6455, 7.4, and IANA's list): the credential holds no more, try again later, restart."""


router = Router()


@router.get("", auth=None, include_in_schema=False)
async def plain_request(request: FleetRequest) -> Answer:
    """Who asks without wanting a socket, or through a proxy that does not pass that on."""
    raise BadRequest("This address speaks WebSocket: send Upgrade: websocket.", code="websocket_expected")


class Credential(Protocol):
    """What somebody has proved to be somebody with."""

    @property
    def recheck_after(self) -> float:
        """Seconds for which it may be believed."""

    async def caller(self) -> Caller:
        """Whose it is now; Unauthenticated, Forbidden, or Unavailable where that can't be known for the moment."""

    async def counted(self) -> Caller:
        """The same for who asks for a socket; LimitExceeded for who does so too often."""


Held = Callable[[Scope], Credential]
"""Finds what a request brings; raises as a credential does."""
Count = Callable[[int], object]
"""Told how many sockets are open whenever that changes."""
Refused = Callable[[Scope, Mapping[bytes, bytes], CitadelError], None]
"""Told why somebody gets no socket, or has it no longer."""


async def nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application for WebSockets at addresses that have none: who asks is told so."""
    await receive()  # websocket.connect
    await _refuse(NotFound(f"There is no WebSocket at {scope['path'][:200]}."), _identified(scope), send)


class ConsoleSocket:
    """An ASGI application for the WebSockets at `PATH`."""

    def __init__(self, feed: Feed, held: Held, count: Count, refused: Refused):
        self._feed = feed
        self._held = held
        self._count = count
        self._refused = refused
        self._holders: list[str] = []
        """Of each open socket a key's id, or a person's name."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One socket, from its request to its end."""
        await receive()  # websocket.connect
        identity = _identified(scope)
        try:
            credential, holder, since = await self._admit(scope)
        except CitadelError as error:
            self._refused(scope, headers_of(scope["headers"]), error)
            await _refuse(error, identity, send)
            return
        watcher = self._feed.join(since)
        self._holders.append(holder)
        self._count(self._feed.watchers)
        try:
            refused = partial(self._refused, scope, headers_of(scope["headers"]))
            messages = self._feed.messages(watcher)
            await _Conversation(messages, watcher.lost, credential, refused, receive, send).run(scope)
        finally:
            self._feed.leave(watcher)
            self._holders.remove(holder)
            self._count(self._feed.watchers)

    async def _admit(self, scope: Scope) -> tuple[Credential, str, int | None]:
        credential = self._held(scope)
        caller = await credential.counted()
        require(caller, SEE_FLEET)
        since = since_of(scope["query_string"])
        holder = caller.key_id or caller.name
        self._check_room(holder)
        return credential, holder, since

    def _check_room(self, holder: str) -> None:
        if self._holders.count(holder) >= MOST_OF_ONE:
            message = f"One key or person may watch by {MOST_OF_ONE} sockets at once, and you do: close some of them."
            raise LimitExceeded(message, code="too_many_own_sockets", retry_after=RETRY_AFTER, whose=holder)
        if self._feed.watchers >= MOST:
            raise Unavailable("Too many watch already.", code="too_many_sockets", retry_after=RETRY_AFTER)


class _Conversation:
    """One open socket. Each of its parts ends with the code to close it with; None: the client has left."""

    def __init__(
        self,
        messages: AsyncGenerator[bytes, None],
        lost: asyncio.Event,
        credential: Credential,
        refused: Callable[[CitadelError], None],
        receive: Receive,
        send: Send,
    ):
        self._messages = messages
        self._lost = lost
        self._credential = credential
        self._refused = refused
        self._receive = receive
        self._send = send

    async def run(self, scope: Scope) -> None:
        """Until the first of its parts ends."""
        await self._send({"type": "websocket.accept"})
        parts = [asyncio.create_task(part) for part in (self._tell(), self._hear(), self._doubt(), self._wait())]
        try:
            ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        code = next(iter(ended)).result()
        if code is None or not await self._in_time({"type": "websocket.close", "code": code}, CLOSING):
            scope["citadel.abort"]()

    async def _tell(self) -> int | None:
        async with aclosing(self._messages) as messages:
            async for raw in messages:
                if not await self._in_time({"type": "websocket.send", "text": raw.decode()}, PATIENCE):
                    return TOO_SLOW
        return GOING

    async def _hear(self) -> int | None:
        """What a client says is let go: there is nothing to be said here."""
        while (await self._receive())["type"] != "websocket.disconnect":
            pass
        return None

    async def _doubt(self) -> int | None:
        """Believes the credential until it holds no more."""
        while True:
            await asyncio.sleep(self._credential.recheck_after)
            try:
                require(await self._credential.caller(), SEE_FLEET)
            except Unavailable:
                continue  # nobody can say otherwise
            except (Unauthenticated, Forbidden) as error:
                self._refused(error)
                return NOT_ALLOWED

    async def _wait(self) -> int | None:
        await self._lost.wait()
        return GOING

    async def _in_time(self, message: Message, seconds: float) -> bool:
        """Sends a message; whether the client has taken it in so many seconds, or those before it."""
        try:
            async with asyncio.timeout(seconds):
                await self._send(message)
        except OSError:  # it has left, or did not read in time
            return False
        return True


def since_of(query: bytes) -> int | None:
    """The id after which events are asked for; BadRequest when it is none."""
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_FIELDS).get("since")
    except ValueError:
        raise BadRequest("There are too many fields in the query.") from None
    if given is None:
        return None
    text = given[-1]
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(LARGEST_ID)) and int(text) <= LARGEST_ID):
        raise BadRequest("Invalid value for 'since': the id of an event, or 0 for all.", param="since")
    return int(text)


def _identified(scope: Scope) -> str:
    """The request's id, which the log names from now on."""
    identity = choose_request_id(dict(scope["headers"]).get(b"x-request-id"))
    request_id.set(identity)
    return identity


async def _refuse(error: CitadelError, identity: str, send: Send) -> None:
    answer = error_answer(error, [(b"x-request-id", identity.encode())])
    headers = [*answer.raw_headers, length_of(answer.content)]
    await send({"type": "websocket.http.response.start", "status": answer.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.content})
