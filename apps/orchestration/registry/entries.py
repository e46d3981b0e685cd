"""Servers come, by an operator's word or their own, and go."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from apps.orchestration.discovery import DiscoveryFailed, Found, MetItself, discover, place_of
from apps.orchestration.events import tell_now
from apps.orchestration.fleet import CALLED
from apps.orchestration.health.glance import departed, forget
from apps.orchestration.messages import Departed, Registered
from apps.orchestration.models import Server
from apps.orchestration.moving import moves
from apps.orchestration.registration import Registration
from apps.orchestration.registry.addresses import address_of, apply, changes_of
from apps.orchestration.registry.named import drop_found, keep_named, keep_registered
from apps.orchestration.registry.states import change_state
from citadel import config
from citadel.caller import Caller
from citadel.errors import BadRequest, Conflict, Forbidden
from citadel.permissions import OPERATE_FLEET, OWN_FLEET, REGISTER_SERVERS, may

State = Server.State
MOST_SERVERS = 1000
"""That a credential registers which operates none of them: a key on one machine fills no registry."""


def add(
    server_id: str,
    url: str,
    *,
    kind: str = "",
    models: Sequence[str] | None = None,
    weight: int | None = None,
    max_concurrent: int | None = None,
    api_key: str | None = None,
) -> Server:
    """Puts a server into the registry for an operator, or brings its entry up to date, with the models it names itself.

    `models` says them instead of asking; a `kind` that is not given is found out. Of a known server the weight and the
    limit stay that are not given, and so does the key, at the same address. ValidationError when a value is wrong,
    DiscoveryFailed when the server can't be asked or is this Citadel; the registry is unchanged then.
    """
    given = {"weight": weight, "max_concurrent": max_concurrent, "api_key": api_key}
    said = {**address_of(url), **{name: value for name, value in given.items() if value is not None}}
    asked = Server.objects.filter(server_id=server_id).first() or Server(server_id=server_id)
    apply(changes_of(asked, said), asked)
    known_kind, asked.kind = asked.kind, kind
    asked.full_clean()
    found = _ask_if_need_be(asked, named=bool(models))
    with transaction.atomic():
        before = Server.objects.select_for_update().filter(server_id=server_id).first()  # asking takes its time
        server, is_elsewhere = before or asked, before is None or moves(before, said)
        apply(changes_of(server, said), server)
        server.kind = found.kind or known_kind
        server.save()
        if is_elsewhere:
            arrived(server)
        keep_named(server, models or (), found)
    return server


def _ask_if_need_be(server: Server, *, named: bool) -> Found:
    """What the server says of itself; where its models are named, its kind is all that may be missing."""
    if named and server.kind:
        return Found(server.kind, [])
    try:
        return discover(place_of(server))
    except MetItself:  # no word of an operator makes it another one
        raise
    except DiscoveryFailed:
        if not named:
            raise
        return Found(server.kind, [])


class Entry(NamedTuple):
    """A server that has registered, and the models that it is known to have."""

    server: Server
    models: list[str]


def register(wanted: Registration, caller: Caller, *, approval: bool) -> Entry:
    """Puts a server into the registry by its own word, or brings its entry up to date. What it doesn't say stays.

    Whether its address may be called has been looked at before, where neither a row nor a thread waits for that.
    BadRequest names a wrong field; Conflict where another credential registered it, or this one too many.
    """
    try:
        return _register(wanted, caller, approval)
    except IntegrityError:  # somebody registered the same id in this moment: now it is there
        return _register(wanted, caller, approval)


@transaction.atomic
def _register(wanted: Registration, caller: Caller, approval: bool) -> Entry:
    server = Server.objects.select_for_update().filter(server_id=wanted.server_id).first()
    is_new = server is None
    if server is None:
        _check_room(wanted.server_id, caller)
        state = Server.State.PENDING if approval else Server.State.ACTIVE
        server = Server(server_id=wanted.server_id, registered_by=caller.key_id, state=state)
    check_owner(server.server_id, server.registered_by, caller)
    fields = wanted.fields(server.base_path)
    owns_all = may(caller, OWN_FLEET, server=server.server_id)
    if moves(server, fields) or not owns_all:  # who does changes an entry without taking it over
        fields["registered_by"] = caller.key_id
    changes = changes_of(server, fields)
    has_moved = not is_new and moves(server, changes)
    try:
        if is_new or changes:
            apply(changes, server)
            server.looked_up = True
            server.full_clean(validate_unique=False)  # the database says it, and means this moment
            server.save()
        if has_moved and approval and server.state in CALLED:  # what was approved was the other address
            server.holds.all().delete()
            change_state(server, Server.State.PENDING, f"key {caller.key_id}, by another address")
        if is_new or has_moved:
            arrived(server)
        keep_registered(server, wanted.found_models(), has_moved)
    except ValidationError as error:
        raise _bad_request(error) from None
    return Entry(server, [row.name for row in server.models.all()])


def _check_room(server_id: str, caller: Caller) -> None:
    """Conflict where a credential that doesn't operate the server has as many as it may; of those that have departed
    one makes room.
    """
    if may(caller, OPERATE_FLEET, server=server_id):
        return
    own = Server.objects.filter(registered_by=caller.key_id)
    if own.count() >= MOST_SERVERS and not _make_room(own.values_list("server_id", flat=True), caller):
        message = (
            f"This credential has registered {MOST_SERVERS} servers, and no more may be: take out those that are gone."
        )
        raise Conflict(message, code="too_many_servers")


def _make_room(server_ids: Collection[str], caller: Caller) -> bool:
    """Takes out one of these servers that has departed, where such are forgotten at all; gives whether it has."""
    if not config.load().registry.forget_departed:
        return False
    gone = let_go(departed().intersection(server_ids), f"key {caller.key_id}, for another server", most=1)
    transaction.on_commit(partial(forget, *gone))
    return bool(gone)


def _bad_request(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, by the name that it has in a registration."""
    field, messages = next(iter(error.message_dict.items()))
    param = {"server_id": "id", "name": "models", "__all__": None}.get(field, field)
    about = f"Invalid value for '{param}': " if param else ""
    return BadRequest(f"{about}{messages[0].rstrip('.')}.", param=param)


def check_owner(server_id: str, registered_by: str, caller: Caller) -> None:
    """Conflict where another credential has registered the server. What an operator has put in, operators may claim."""
    if registered_by == caller.key_id or may(caller, OWN_FLEET, server=server_id):
        return
    if registered_by:
        raise Conflict(f"The server '{server_id}' was registered by another credential.", code="owned_by_another")
    if not may(caller, OPERATE_FLEET, server=server_id):
        reason = "only an operator's key can claim it. Once it is removed, it can register itself"
        raise Conflict(f"The server '{server_id}' was put in by an operator: {reason}.", code="owned_by_another")


def check_remover(server_id: str, registered_by: str, caller: Caller) -> None:
    """Forbidden unless the caller may take the server out: its own, or as an operator any."""
    registered = registered_by == caller.key_id and may(caller, REGISTER_SERVERS, server=server_id)
    if not registered and not may(caller, OPERATE_FLEET, server=server_id):
        raise Forbidden(f"This needs the permission '{OPERATE_FLEET}', or the credential that registered the server.")


def arrived(server: Server) -> None:
    """What follows when a server is new, or at another address: what was found was found elsewhere, and where it is now
    is told. Within the transaction that makes it so, before its models are named.
    """
    drop_found(server)
    if server.listed:
        server.listed = False
        server.save(update_fields=["listed"])
    tell_now(server.server_id, Registered(server.kind, server.role, server.state, server.url))


def remove(server_id: str, by: str) -> None:
    """Takes a server out of the registry and off the board, and tells it. Server.DoesNotExist."""
    with transaction.atomic():
        take_out(server_id, by)
        transaction.on_commit(partial(forget, server_id))


def take_out(server_id: str, by: str) -> None:
    """The same but for the board, for whoever takes out several in one transaction and has them forgotten at once."""
    Server.objects.select_for_update().get(server_id=server_id).delete()
    tell_now(server_id, Departed("deregistered", by))


def let_go(server_ids: Collection[str], by: str, most: int) -> list[str]:
    """Takes up to so many departed servers out, who came first before others, and tells it; gives whom. Whoever calls
    has the board forget them. Not what operators have put in, drained or disabled: it would come back as if they had
    said nothing.
    """
    with transaction.atomic():
        rows = Server.objects.filter(server_id__in=server_ids).exclude(registered_by="")
        locked = rows.select_for_update().order_by("pk")  # all before the first goes, which holds the registry's epoch
        gone = [row.server_id for row in locked if _goes_by_itself(row)][:most]
        for server_id in gone:
            take_out(server_id, by)
    return gone


def _goes_by_itself(server: Server) -> bool:
    """Whether no operator's word would be lost with it."""
    state = server.state
    return state in (State.ACTIVE, State.PENDING) or (state == State.DRAINING and server.holds.exists())
