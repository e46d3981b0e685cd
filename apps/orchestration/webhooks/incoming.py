"""The story of a webhook that comes in: prove → read → decide by rules → act, once → keep.

What an act says of a server's health goes onto the board first, and can be said twice; then marks, states of servers
and what is kept are one transaction, so that of equal deliveries one acts, however many come at the same time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import msgspec
from django.db import transaction
from django.db.models import QuerySet

from apps.orchestration.catching_up import unknown_server
from apps.orchestration.health.changes import tell_change
from apps.orchestration.health.conditions import Load, Status
from apps.orchestration.models import Hook, HookMark, ReceivedWebhook, Server
from apps.orchestration.registration import Heartbeat, LoadMetrics
from apps.orchestration.requests import Worker
from apps.orchestration.webhooks.holds import ACTIONS
from apps.orchestration.webhooks.rules import Act, Report, Rule, acts, digest, reports
from citadel.database import in_thread
from citadel.decoding import decode
from citadel.errors import BadRequest, Unavailable
from citadel.redis import RedisError

ALERTMANAGER, SERVER_STATUS = "alertmanager", "server_status"
STATUSES: tuple[str, ...] = get_args(Status)
LONGEST_KEPT = 64 * 1024
"""Bytes of a body that is kept."""
LONGEST_MESSAGE_ID = 255
LONGEST_REASON = 200


class Done(msgspec.Struct, frozen=True):
    """What became of one act."""

    server_id: str
    action: str
    result: Literal["done", "unchanged", "duplicate", "unknown_server"]


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a webhook: what it led to. A duplicate leads to nothing."""

    status: Literal["accepted", "duplicate"]
    actions: list[Done]


class Alert(msgspec.Struct):
    """One alert; what rules look up may be anything in it."""

    status: str
    labels: dict[str, Any]


class Alertmanager(msgspec.Struct):
    """Alertmanager's own payload, as far as it is looked into."""

    alerts: Annotated[list[Alert], msgspec.Meta(max_length=1000)]


class ServerStatus(msgspec.Struct):
    """`POST /webhooks/server_status`."""

    server_id: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    status: Status
    load_metrics: LoadMetrics | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A webhook that was believed: from whom, its own id if it has one, and what it wants."""

    hook: Hook
    sender: str
    message_id: str
    body: Mapping[str, Any]
    size: int
    acts: Sequence[Act]
    reason: str = ""
    loads: Mapping[str, Load] = field(default_factory=dict)


def find(name: str) -> Hook | None:
    """The type of that name, with its rules, if it is enabled."""
    return Hook.objects.filter(name=name, enabled=True).prefetch_related("rules").first()


def read(hook: Hook, sender: str, headers: Mapping[bytes, bytes], body: bytes) -> Message:
    """What a body wants, by the rules of its type; BadRequest names the field that is wrong."""
    message_id = headers.get(b"webhook-id", b"").decode("latin-1")
    if len(message_id) > LONGEST_MESSAGE_ID or not (message_id.isascii() and message_id.isprintable()):
        raise BadRequest("The header webhook-id is visible ASCII, at most 255 characters.", param="webhook-id")
    fields = decode(body, dict[str, Any])
    if hook.name == SERVER_STATUS:
        told = decode(body, ServerStatus)
        loads = {told.server_id: Heartbeat(told.load_metrics).load} if told.load_metrics else {}
        wanted = [Act(told.server_id, told.status)]
        reason = told.message.replace("\0", "")[:LONGEST_REASON]
        return Message(hook, sender, message_id, fields, len(body), wanted, reason, loads)
    if hook.name == ALERTMANAGER:
        decode(body, Alertmanager)
    rules = [Rule(row.match, row.server, row.action) for row in hook.rules.all()]
    found: list[Report] = reports(fields, hook.items, hook.fields)
    return Message(hook, sender, message_id, fields, len(body), acts(found, rules, hook.identity, hook.cause))


async def act(worker: Worker, message: Message) -> Accepted:
    """Does what a message wants, unless it has been done; Unavailable while the board can't be written."""
    fresh = await in_thread(still_to_do, message)
    try:
        for one in fresh:
            if one.action in STATUSES:
                status, reason = msgspec.convert(one.action, Status), message.reason or message.hook.name
                change = await worker.board.say(one.server_id, "webhook", status, reason)
                await tell_change(worker.board, worker.pool, change)
            if one.server_id in message.loads:
                await worker.board.loads.report(one.server_id, message.loads[one.server_id])
        await worker.watch.refresh()
    except RedisError:
        raise Unavailable("What the webhook says can't be kept at the moment.", retry_after=5) from None
    return await in_thread(carry_out, message)


def still_to_do(message: Message) -> list[Act]:
    """The acts on known servers that no earlier message has brought about."""
    known = {server.server_id: server for server in _named(message).only("server_id")}
    acts = [(act, _mark_of(act, known[act.server_id])) for act in message.acts if act.server_id in known]
    digests = [_mark(message), *(mark for _, mark in acts)]
    marked = set(HookMark.objects.filter(hook=message.hook, digest__in=digests).values_list("digest", flat=True))
    if message.hook.name == SERVER_STATUS and not known:
        raise unknown_server(message.acts[0].server_id)
    if _mark(message) in marked:
        return []
    return [act for act, mark in acts if mark not in marked]


def carry_out(message: Message) -> Accepted:
    """Changes the states of servers, marks what was done, and keeps the message: all or nothing.

    All servers are locked before the first is changed, which holds the registry's epoch until the end: who holds one of
    them and waits for that would never get it.
    """
    with transaction.atomic():
        known = {server.server_id: server for server in _named(message).select_for_update().order_by("server_id")}
        if message.message_id and not HookMark.take(message.hook, _mark(message)):
            accepted = Accepted("duplicate", [])
        else:
            done = [_do(message, act, known.get(act.server_id)) for act in message.acts]
            again = bool(done) and all(one.result == "duplicate" for one in done)
            accepted = Accepted("duplicate" if again else "accepted", done)
        ReceivedWebhook.objects.create(
            hook=message.hook,
            sender=message.sender,
            message_id=message.message_id,
            outcome=accepted.status,
            actions=msgspec.to_builtins(accepted.actions),
            body=_kept(message),
        )
    return accepted


def _do(message: Message, act: Act, server: Server | None) -> Done:
    if server is None:
        return Done(act.server_id, act.action, "unknown_server")
    if act.mark and not HookMark.take(message.hook, _mark_of(act, server)):
        return Done(act.server_id, act.action, "duplicate")
    if act.action in ACTIONS and not ACTIONS[act.action](server, message.hook, act.cause):
        return Done(act.server_id, act.action, "unchanged")
    return Done(act.server_id, act.action, "done")


def _named(message: Message) -> QuerySet[Server]:
    return Server.objects.filter(server_id__in={act.server_id for act in message.acts})


def _mark(message: Message) -> str:
    return digest("message", message.message_id) if message.message_id else ""


def _mark_of(act: Act, server: Server) -> str:
    """An act's mark upon a server: one that has come anew, under the same id, is another, and nothing holds it yet."""
    return digest(act.mark, server.pk) if act.mark else ""


def _kept(message: Message) -> Mapping[str, Any] | None:
    """The body, where it is not too large, and as PostgreSQL can hold it."""
    if message.size > LONGEST_KEPT or "\\u0000" in msgspec.json.encode(message.body).decode():
        return None
    return message.body
