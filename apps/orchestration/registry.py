"""Servers come and go.

A model is known by somebody's word (`ServedModel.named_by`): what an operator names stays until an operator takes it
back, what a registration names until one no longer does, and what is found by asking the server until it is found no
more. Where an operator has named all that a server serves nothing that is found comes to that.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import structlog
from django.core.exceptions import ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db import Error, IntegrityError, connection, transaction
from django.db.models import QuerySet

from apps.orchestration.dialects import DIALECTS, FoundModel
from apps.orchestration.discovery import DiscoveryFailed, Found, MetItself, Place, discover, place_of
from apps.orchestration.events import tell_now
from apps.orchestration.fleet import CALLED
from apps.orchestration.health.glance import acquit, forget
from apps.orchestration.listing import Row
from apps.orchestration.messages import Departed, Drained, Enabled, Registered
from apps.orchestration.models import Epoch, ServedModel, Server
from apps.orchestration.registration import Registration
from citadel.caller import Caller
from citadel.errors import BadRequest, Conflict, Forbidden
from citadel.permissions import OPERATE_FLEET, OWN_FLEET, REGISTER_SERVERS, may

NamedBy = ServedModel.NamedBy
WORDS = ("", *NamedBy.values)
"""By whom a model is named, from the word that counts least."""

log = structlog.get_logger("citadel.registry")

ASKED_AT_ONCE = 16
"""Servers of one command or action."""
ADDRESS = ("scheme", "hostname", "port", "base_path")
"""The fields of a server's address."""


def register(
    server_id: str,
    url: str,
    *,
    kind: str = "",
    models: Sequence[str] | None = None,
    weight: int | None = None,
    api_key: str | None = None,
) -> Server:
    """Puts a server into the registry for an operator, or brings its entry up to date, with the models it names itself.

    `models` says them instead of asking; a `kind` that is not given is found out. Of a known server the weight stays
    that is not given, and so does the key, at the same address. ValidationError when a value is wrong, DiscoveryFailed
    when the server can't be asked or is this Citadel; the registry is unchanged then.
    """
    given = {"weight": weight, "api_key": api_key}
    said = {**address_of(url), **{name: value for name, value in given.items() if value is not None}}
    asked = Server.objects.filter(server_id=server_id).first() or Server(server_id=server_id)
    _apply(_changes(asked, said), asked)
    known_kind, asked.kind = asked.kind, kind
    asked.full_clean()
    found = _ask_if_need_be(asked, named=bool(models))
    with transaction.atomic():
        before = Server.objects.select_for_update().filter(server_id=server_id).first()  # asking takes its time
        server = before or asked
        _apply(_changes(server, said), server)
        server.kind = found.kind or known_kind
        server.save()
        _keep_named(server, models or (), found)
        if before is None:
            tell_registered(server)
    return server


def _apply(changes: dict[str, Any], server: Server) -> None:
    for name, value in changes.items():
        setattr(server, name, value)


def _keep_named(server: Server, models: Sequence[str], found: Found) -> None:
    """Has those models that an operator names, what was found, and what a registration names."""
    server.models.filter(named_by=NamedBy.OPERATOR).update(named_by="")
    names = [DIALECTS[server.kind].one_name(name) for name in models]
    if names:
        server.models.filter(named_by="").exclude(name__in=names).delete()
    name_models(server, [FoundModel(name) for name in names])
    keep_models(server, found.models)


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


class Enrolled(NamedTuple):
    """A server that has registered, and the models that it is known to have."""

    server: Server
    models: list[str]


def enrol(wanted: Registration, caller: Caller, *, approval: bool) -> Enrolled:
    """Puts a server into the registry by its own word, or brings its entry up to date. What it doesn't say stays.

    BadRequest names a wrong field; Conflict where another credential registered it.
    """
    try:
        return _enrol(wanted, caller, approval)
    except IntegrityError:  # somebody registered the same id in this moment: now it is there
        return _enrol(wanted, caller, approval)


@transaction.atomic
def _enrol(wanted: Registration, caller: Caller, approval: bool) -> Enrolled:
    server = Server.objects.select_for_update().filter(server_id=wanted.server_id).first()
    is_new = server is None
    if server is None:
        state = Server.State.PENDING if approval else Server.State.ACTIVE
        server = Server(server_id=wanted.server_id, registered_by=caller.key_id, state=state)
    check_owner(server.server_id, server.registered_by, caller)
    changes = _changes(server, {**wanted.fields(), "registered_by": caller.key_id})
    has_moved = not is_new and _moves(server, changes)
    try:
        if is_new or changes:
            _apply(changes, server)
            server.full_clean(validate_unique=False)  # the database says it, and means this moment
            server.save()
        if has_moved:  # what was found was found elsewhere
            _drop(server.models.filter(named_by=""))
        _keep_registered(server, wanted.found_models(), has_moved)
    except ValidationError as error:
        raise _bad_request(error) from None
    if has_moved and approval and server.state in CALLED:  # what was approved was the other address
        server.holds.all().delete()
        change_state(server, Server.State.PENDING, f"key {caller.key_id}, by another address")
    if is_new or has_moved:
        tell_registered(server)
    return Enrolled(server, [row.name for row in server.models.all()])


def _keep_registered(server: Server, models: Sequence[FoundModel] | None, has_moved: bool) -> None:
    """Has those models that a registration names; the word of an earlier one is taken back, an operator's stays."""
    if models is None:
        return
    names = [DIALECTS[server.kind].one_name(model.name) for model in models]
    named_no_more = server.models.filter(named_by=NamedBy.REGISTRATION).exclude(name__in=names)
    if has_moved:
        _drop(named_no_more)
    else:
        unname(server, named_no_more)
    _write(server, models, NamedBy.REGISTRATION)


def unname(server: Server, rows: QuerySet[ServedModel]) -> None:
    """Takes back the word that some of a server's models have. They count as found, so that the server's next answer
    says whether it still holds them, or go where nobody can be asked.
    """
    if not (DIALECTS[server.kind].models_path or server.models_endpoint):
        _drop(rows)
    elif rows.exists():
        rows.update(named_by="")


def _changes(server: Server, fields: dict[str, Any]) -> dict[str, Any]:
    """What differs. At another address there may be another kind of server, and the key for the old one is not its;
    what looked like a web server when it registered last may only have been half awake.
    """
    if server.kind == Server.Kind.HTTP:
        fields = {"kind": "", **fields}
    if _moves(server, fields):
        fields = {"kind": "", "api_key": "", **fields}
    return {name: value for name, value in fields.items() if _differs(server, name, value)}


def _moves(server: Server, fields: dict[str, Any]) -> bool:
    """Whether these fields give a server another address."""
    return any(_differs(server, name, fields[name]) for name in ADDRESS if name in fields)


def _differs(server: Server, name: str, value: Any) -> bool:
    """Whether a field is to have another value; a host's name is the same in any case."""
    before = getattr(server, name)
    return bool(before.lower() != value.lower() if name == "hostname" else before != value)


def _bad_request(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, by the name that it has in a registration."""
    field, messages = next(iter(error.message_dict.items()))
    param = {"server_id": "id", "name": "models", "__all__": None}.get(field, field)
    about = f"Invalid value for '{param}': " if param else ""
    return BadRequest(f"{about}{messages[0].rstrip('.')}.", param=param)


def check_owner(server_id: str, registered_by: str, caller: Caller) -> None:
    """Conflict where another credential has registered the server. What an operator has put in, operators may claim."""
    if registered_by == caller.key_id or may(caller, OWN_FLEET):
        return
    if registered_by or not may(caller, OPERATE_FLEET):
        raise Conflict(f"The server '{server_id}' was registered by another credential.", code="owned_by_another")


def check_remover(registered_by: str, caller: Caller) -> None:
    """Forbidden unless the caller may take the server out: its own, or as an operator any."""
    if not may(caller, OPERATE_FLEET) and not (registered_by == caller.key_id and may(caller, REGISTER_SERVERS)):
        raise Forbidden(f"This needs the permission '{OPERATE_FLEET}', or the credential that registered the server.")


def epoch() -> int:
    """The number of the configuration as it is now."""
    return Epoch.objects.values_list("number", flat=True).get()


def tell_registered(server: Server) -> None:
    """The event; within the transaction that makes it so."""
    tell_now(server.server_id, Registered(server.kind, server.role, server.state, server.url))


def refresh(server: Server) -> list[FoundModel]:
    """Asks a server anew for its models; DiscoveryFailed and ValidationError leave them as they were."""
    place = place_of(server)
    found = discover(place)
    keep_found(server, place, found)
    return found.models


def discover_and_keep(server_id: str) -> list[FoundModel]:
    """Brings what is known of a server's kind and models in step with what it says.

    DiscoveryFailed leaves that as it was; a server that turns out to be this very Citadel is disabled, and one that is
    not to be called is not asked. Server.DoesNotExist where it has gone.
    """
    server = Server.objects.get(server_id=server_id)
    if server.state not in CALLED:
        raise DiscoveryFailed(f"it is {server.state}, and called once it is enabled")
    place = place_of(server)
    connection.close_if_unusable_or_obsolete()  # none waits for the server; within a transaction it stays
    try:
        return refresh(server)
    except MetItself:
        shut_out(server, place)
        raise


class Asked(NamedTuple):
    """A server that has been asked: the models that it says it has, or what was in the way."""

    server: Server
    models: list[FoundModel]
    complaint: str = ""


def discover_all(servers: Iterable[Server]) -> list[Asked]:
    """As `discover_and_keep` of each server, several at once; what fails of one is told of that one."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(_asked, servers))


def _asked(server: Server) -> Asked:
    try:
        return Asked(server, discover_and_keep(server.server_id))
    except (DiscoveryFailed, ValidationError, Server.DoesNotExist, Error) as failure:
        return Asked(server, [], str(failure) or type(failure).__name__)
    finally:
        connection.close()  # this thread's own


@transaction.atomic
def shut_out(server: Server, place: Place) -> None:
    """Disables a server that leads back to this Citadel, unless an operator has said himself what it serves."""
    log.warning("citadel_met_itself", server=server.server_id)
    if not _is_at(place, server, place.kind):
        return
    if server.registered_by or not server.models.filter(named_by=NamedBy.OPERATOR).exists():
        set_state(server.server_id, Server.State.DISABLED, "discovery: it leads back to this Citadel itself")


@transaction.atomic
def keep_found(server: Server, place: Place, found: Found) -> None:
    """Makes the registry say what a server has said of itself at a place; what is the same is not written. Where the
    server has another place by now it has said nothing.
    """
    if not _is_at(place, server, found.kind):
        return
    if server.kind != found.kind:
        server.kind = found.kind
        server.save(update_fields=["kind"])
    keep_models(server, found.models)


def _is_at(place: Place, server: Server, kind: str) -> bool:
    """Whether a server is still where it was asked, and of the kind that was asked for or found; locks its row."""
    row = Server.objects.select_for_update().filter(pk=server.pk).first()
    if row is not None and place_of(row) in (place, replace(place, kind=kind)):
        return True
    log.info("answer_of_another_place", server=server.server_id, url=place.url)
    return False


def keep_models(server: Server, found: Sequence[FoundModel]) -> None:
    """Makes the server's models those `found` and those that somebody named; where an operator has named all, these
    alone. ValidationError when one of them can't be kept.
    """
    unify_names(server)
    known = dict(server.models.values_list("name", "named_by"))
    if set(known.values()) == {NamedBy.OPERATOR} and not server.registered_by:
        found = [model for model in found if model.name in known]
    _drop(server.models.exclude(name__in=[model.name for model in found]).filter(named_by=""))
    _write(server, found)


def _drop(rows: QuerySet[ServedModel]) -> None:
    """Deletes rows where there are any: by the attempt alone the epoch would move."""
    if rows.exists():
        rows.delete()


def unify_names(server: Server) -> None:
    """Has each of the server's models under its one name: somebody may have named it by another."""
    rows = {row.name: row for row in server.models.all()}
    for name, row in rows.items():
        one = DIALECTS[server.kind].one_name(name)
        if one == name:
            continue
        if one in rows:
            row.delete()
            server.models.filter(name=one).update(named_by=_stronger(row.named_by, rows[one].named_by))
        else:
            row.name = one
            row.save()


def name_models(server: Server, models: Sequence[FoundModel]) -> None:
    """Has models that an operator names among the server's; nothing that is said of them earlier is forgotten."""
    _write(server, models, NamedBy.OPERATOR)


def _stronger(*words: str) -> str:
    return max(words, key=WORDS.index)


def _write(server: Server, models: Sequence[FoundModel], named_by: str = "") -> None:
    """Adds and completes; a stronger word than `named_by` stays."""
    known = {row.name: row for row in server.models.all()}
    one_name = DIALECTS[server.kind].one_name
    for model in models:
        name = one_name(model.name)
        row = known.setdefault(name, ServedModel(server=server, name=name))
        values = {
            "context_length": model.context_length or row.context_length,
            "owned_by": model.owned_by[:64] or row.owned_by,
            "capabilities": row.capabilities if model.capabilities is None else list(model.capabilities),
            "named_by": _stronger(named_by, row.named_by),
        }
        if row.pk is None or any(getattr(row, name) != value for name, value in values.items()):
            for name, value in values.items():
                setattr(row, name, value)
            ProhibitNullCharactersValidator()(row.name)
            row.clean_fields(exclude=("server",))
            row.save()


class Turned(NamedTuple):
    """A server whose state has been set, and whether it is to be asked now what it is and holds: while it was not
    called nobody has asked it, or nobody has found out its kind yet.
    """

    server: Server
    ask: bool


def set_state(server_id: str, state: str, by: str, url: str = "") -> Turned:
    """Enables, drains or disables a server by an operator's word, and tells it: no webhook's hold is in force any more,
    nor, once it is enabled, what webhooks say of its health. Server.DoesNotExist; Conflict where the operator has said
    at which `url` it is and it has another one.
    """
    with transaction.atomic():
        server = Server.objects.select_for_update().get(server_id=server_id)
        if url and url != server.url:
            raise Conflict(f"The server '{server_id}' is at {server.url}.", code="server_has_moved", param="url")
        ask = state in CALLED and not (server.state in CALLED and server.kind)
        server.holds.all().delete()
        change_state(server, state, by)
        if state == Server.State.ACTIVE:
            transaction.on_commit(partial(acquit, server_id))
    return Turned(server, ask)


def keep_state(server_id: str, state: str, by: str) -> bool:
    """As `set_state`, of an entry that an operator gives as a whole: that an active server is to be active is no word
    about its health. Gives whether the server is to be asked now. Server.DoesNotExist.
    """
    if state == Server.State.ACTIVE and Server.objects.filter(server_id=server_id, state=state).exists():
        return False
    return set_state(server_id, state, by).ask


def change_state(server: Server, state: str, by: str) -> None:
    """Gives a server, whose row is locked, another state and tells it, whoever's word that is."""
    if server.state == state:
        return
    before, server.state = server.state, state
    server.save(update_fields=["state"])
    told = Enabled if state == Server.State.ACTIVE else Drained
    tell_now(server.server_id, told(state, before, by))


def remove(server_id: str, by: str) -> None:
    """Takes a server out of the registry and off the board, and tells it. Server.DoesNotExist."""
    with transaction.atomic():
        take_out(server_id, by)
        transaction.on_commit(partial(forget, server_id))


def take_out(server_id: str, by: str) -> None:
    """The same but for the board, for whoever takes out several in one transaction and has them forgotten at once."""
    Server.objects.select_for_update().get(server_id=server_id).delete()
    tell_now(server_id, Departed("deregistered", by))


def rows(server_id: str | None = None) -> list[Row]:
    """The registry as the API shows it: all of it, or one server where there is one of that id."""
    servers = Server.objects.prefetch_related("models").order_by("server_id")
    return [_row(server) for server in (servers.filter(server_id=server_id) if server_id else servers)]


def _row(server: Server) -> Row:
    return Row(
        server.server_id,
        server.hostname,
        server.port,
        server.url,
        server.role,
        server.kind,
        [model.name for model in server.models.all()],
        server.services,
        server.capabilities,
        server.weight,
        server.state,
    )


def address_of(url: str) -> dict[str, Any]:
    """The fields of a server's address; ValidationError when it is none."""
    parts = urlsplit(url.strip())
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValidationError({"url": f"{url!r} is not an address like http://host:11434"})
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValidationError({"url": "An address has no user, query or fragment; a key goes into api_key."})
    return {
        "scheme": parts.scheme,
        "hostname": parts.hostname,
        "port": port,
        "base_path": parts.path.rstrip("/").removesuffix("/v1"),
    }
