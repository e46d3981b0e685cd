"""`/webhooks`: what monitoring and other systems report, and what became of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import msgspec
from ninja import Router

from apps.orchestration.models import Hook, ReceivedWebhook
from apps.orchestration.requests import FleetRequest
from apps.orchestration.webhooks import incoming
from apps.orchestration.webhooks.credentials import prove
from citadel.answer import Answer, json_answer
from citadel.caller import STRANGER
from citadel.database import in_thread
from citadel.description import answers
from citadel.errors import BadRequest, NotFound, TooLarge, Unavailable
from citadel.pages import USUAL, Limit, NameCursor, NumberCursor, Page
from citadel.permissions import OPERATE_FLEET, SEE_FLEET, require

router = Router(tags=["Webhooks"])

LOOK_UPS = 2
"""At a time, for those that have proved nothing yet: they leave connections to the others."""
MOST_WAITING = 8
"""Of them, each with its body; one more is told at once to come again."""
WITHIN = 5.0
"""Seconds that one waits for its turn."""

REFUSED = (BadRequest, NotFound, TooLarge, Unavailable)


class HookRow(msgspec.Struct):
    """A type of webhook."""

    name: str
    enabled: bool
    description: str
    items: str
    fields: list[str]
    identity: list[str]
    rules: list[dict[str, Any]]


class HookRows(msgspec.Struct):
    """A page of them."""

    data: list[HookRow]
    next: str | None


class ReceivedRow(msgspec.Struct):
    """One webhook that came in. `at` in seconds since the epoch."""

    id: int
    at: float
    sender: str
    message_id: str
    outcome: str
    actions: list[dict[str, Any]]


class ReceivedRows(msgspec.Struct):
    """A page of them, newest first."""

    data: list[ReceivedRow]
    next: str | None


@router.get("", openapi_extra=answers(HookRows, BadRequest, Unavailable))
async def webhook_types(request: FleetRequest, limit: Limit = USUAL, cursor: NameCursor | None = None) -> Answer:
    """The types of webhooks that come in, and their rules."""
    require(request.auth, SEE_FLEET)
    page = Page.asked(limit, cursor)
    rows = await in_thread(_hooks, page)
    return json_answer(page.of(rows, _hook_row, lambda hook: hook.name))


@router.post("/alertmanager", openapi_extra=answers(incoming.Accepted, *REFUSED, body=incoming.Alertmanager))
async def alertmanager_webhook(request: FleetRequest) -> Answer:
    """Alerts of Prometheus's Alertmanager: by rule, their labels drain a server while they fire and enable it after."""
    return await _receive(request, incoming.ALERTMANAGER)


@router.post("/server_status", openapi_extra=answers(incoming.Accepted, *REFUSED, body=incoming.ServerStatus))
async def server_status_webhook(request: FleetRequest) -> Answer:
    """What somebody says of a server's health and load."""
    return await _receive(request, incoming.SERVER_STATUS)


@router.post("/{webhook_type}", openapi_extra=answers(incoming.Accepted, *REFUSED, body=dict[str, Any]))
async def webhook(request: FleetRequest, webhook_type: str) -> Answer:
    """A webhook of a type that an operator has defined, with what it makes Citadel do."""
    return await _receive(request, webhook_type)


@router.get("/alertmanager", openapi_extra=answers(ReceivedRows, BadRequest, NotFound, Unavailable))
async def received_alerts(request: FleetRequest, limit: Limit = USUAL, cursor: NumberCursor | None = None) -> Answer:
    """What Alertmanager has sent and what became of it, newest first."""
    return await _tell_received(request, incoming.ALERTMANAGER, Page.asked(limit, cursor))


@router.get("/server_status", openapi_extra=answers(ReceivedRows, BadRequest, NotFound, Unavailable))
async def received_statuses(request: FleetRequest, limit: Limit = USUAL, cursor: NumberCursor | None = None) -> Answer:
    """What was said of servers' health and load and what became of it, newest first."""
    return await _tell_received(request, incoming.SERVER_STATUS, Page.asked(limit, cursor))


@router.get("/{webhook_type}", openapi_extra=answers(ReceivedRows, BadRequest, NotFound, Unavailable))
async def received_webhooks(
    request: FleetRequest, webhook_type: str, limit: Limit = USUAL, cursor: NumberCursor | None = None
) -> Answer:
    """What has come in of one type and what became of it, newest first."""
    return await _tell_received(request, webhook_type, Page.asked(limit, cursor))


async def _tell_received(request: FleetRequest, name: str, page: Page) -> Answer:
    require(request.auth, SEE_FLEET)
    rows = await in_thread(_received, name, page)
    return json_answer(page.of(rows, _received_row, lambda row: str(row.pk)))


async def _receive(request: FleetRequest, name: str) -> Answer:
    headers, body, worker = request.raw_headers, request.body, request.runtime
    if request.auth is not STRANGER:
        require(request.auth, OPERATE_FLEET)
    async with _strangers.turn() if request.auth is STRANGER else nullcontext():
        hook = await in_thread(incoming.find, name) if "\0" not in name else None
    sender = prove(hook, request.auth, headers, body, worker.config.secret)
    if hook is None:
        raise NotFound(f"There is no type of webhook '{name[:64]}', or it is not enabled.")
    return json_answer(await incoming.act(worker, incoming.read(hook, sender, headers, body)))


class Turns:
    """Lets few in at a time, and few wait for that."""

    def __init__(self, at_once: int, waiting: int):
        self._free = asyncio.Semaphore(at_once)
        self._room = at_once + waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Somebody's turn; Unavailable where too many wait for theirs, or it does not come in time."""
        if not self._room:
            raise _busy()
        self._room -= 1
        try:
            await self._come()
            try:
                yield
            finally:
                self._free.release()
        finally:
            self._room += 1

    async def _come(self) -> None:
        try:
            async with asyncio.timeout(WITHIN):
                await self._free.acquire()
        except TimeoutError:
            raise _busy() from None


_strangers = Turns(LOOK_UPS, MOST_WAITING)


def _busy() -> Unavailable:
    return Unavailable("Too many webhooks wait to be looked at: send this one again.", retry_after=1)


def _hooks(page: Page) -> list[Hook]:
    return list(Hook.objects.filter(name__gt=page.after).prefetch_related("rules")[: page.limit + 1])


def _received(name: str, page: Page) -> list[ReceivedWebhook]:
    hook = Hook.objects.filter(name=name).first() if "\0" not in name else None
    if hook is None:
        raise NotFound(f"There is no type of webhook '{name[:64]}'.")
    rows = hook.received.all()
    before = page.number
    return list((rows if before is None else rows.filter(pk__lt=before))[: page.limit + 1])


def _hook_row(hook: Hook) -> HookRow:
    rules = [{"match": rule.match, "server": rule.server, "action": rule.action} for rule in hook.rules.all()]
    return HookRow(hook.name, hook.enabled, hook.description, hook.items, hook.fields, hook.identity, rules)


def _received_row(row: ReceivedWebhook) -> ReceivedRow:
    return ReceivedRow(row.pk, row.at.timestamp(), row.sender, row.message_id, row.outcome, row.actions)
