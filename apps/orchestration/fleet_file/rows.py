"""The registry's rows as a declared fleet, and their change into another one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection, models, transaction

from apps.orchestration import models as rows
from apps.orchestration import registry
from apps.orchestration.dialects import FoundModel
from apps.orchestration.fleet import CALLED
from apps.orchestration.fleet_file.declared import Alias, Class, Declared, Difference, Held, Server
from apps.orchestration.health.glance import forget
from apps.orchestration.moving import moves

SERVER_FIELDS = tuple(name for name in Server.__struct_fields__ if name != "models")
BY = "the fleet file"
OPERATOR = rows.ServedModel.NamedBy.OPERATOR
"""Whose word the file is: what registrations name is none of its."""
Fit = Callable[[Declared, str], models.Model]
LOCK = "SET LOCAL lock_timeout = '10s'; LOCK TABLE {} IN EXCLUSIVE MODE"


class Unfit(Exception):
    """What the file declares can't be kept; `path` is what of it."""

    def __init__(self, path: tuple[str, ...], reason: str):
        self.path = path
        self.reason = reason
        super().__init__(f"{'.'.join(path)}: {reason}")


def hold() -> None:
    """Lets nobody else change the registry until this transaction ends; OperationalError when somebody is at it."""
    tables = (rows.Server, rows.ServedModel, rows.ModelClass, rows.Alias)
    with connection.cursor() as cursor:
        cursor.execute(LOCK.format(", ".join(table._meta.db_table for table in tables)))


def load() -> Declared:
    """The whole registry, keys included."""
    return Declared(
        servers={row.server_id: _server(row) for row in rows.Server.objects.prefetch_related("models")},
        classes={
            row.name: Class(**{name: getattr(row, name) for name in Class.__struct_fields__})
            for row in rows.ModelClass.objects.all()
        },
        aliases={row.name: Alias(row.model) for row in rows.Alias.objects.all()},
    )


def check(then: Declared, found: Sequence[Difference]) -> None:
    """Unfit where an entry that is different can't be what it is in `then`; nothing is changed."""
    fit: dict[str, Fit] = {"servers": _fit_server, "classes": _fit_class, "aliases": _fit_alias}
    for difference in found:
        if difference.act != "remove":
            fit[difference.section](then, difference.name)


def keep(then: Declared, found: Sequence[Difference]) -> list[str]:
    """Makes the entries that are different what they are in `then`, and gives the ids of the servers that are to be
    asked now since they were enabled. Unfit where an entry can't be so.

    Removals first: what is added may need their place. Whoever calls holds a transaction, and has had them all pass
    `check`: nobody's name is looked up any more, since that takes seconds each where the resolver is away.
    """
    gone = [one.name for one in found if (one.section, one.act) == ("servers", "remove")]
    for name in gone:
        registry.take_out(name, BY)
    if gone:
        transaction.on_commit(partial(forget, *gone))
    enabled = []
    for difference in sorted(found, key=lambda one: one.act != "remove"):
        if difference.section != "servers":
            {"classes": _keep_class, "aliases": _keep_alias}[difference.section](then, difference)
        elif difference.act != "remove" and _keep_server(then, difference):
            enabled.append(difference.name)
    return enabled


def _server(row: rows.Server) -> Server:
    named = {held.name: _said(held) for held in row.models.all() if held.named_by == OPERATOR}
    return Server(models=named, **{name: getattr(row, name) for name in SERVER_FIELDS})


def _said(held: rows.ServedModel) -> Held:
    """What operators have said of a model; what its server tells of it is none of the file's."""
    facts = {name: getattr(held, name) for name in held.said}
    if "capabilities" in facts:
        facts["capabilities"] = [*facts["capabilities"]]
    return Held(**facts)


def _keep_server(then: Declared, difference: Difference) -> bool:
    """Gives whether the server is to be asked now since its state is another one, or its address."""
    name = difference.name
    server = (then.servers or {})[name]
    row = _fit_server(then, name, looked_up=True)
    before = rows.Server.objects.filter(pk=row.pk).first()
    has_moved = before is not None and moves(before, vars(row))
    row.save()
    if before is None or has_moved:
        registry.arrived(row)
    _name_models(row, server.models or {})
    if before is None:
        return False
    for change in difference.changes:
        if change.field == "state":  # what is left as it is is no word about it
            return registry.set_state(name, change.after, BY).ask
    return has_moved and row.state in CALLED


def _fit_server(then: Declared, name: str, *, looked_up: bool = False) -> rows.Server:
    server = (then.servers or {})[name]
    row = rows.Server.objects.filter(server_id=name).first() or rows.Server(server_id=name, state=server.state or "")
    row.looked_up = looked_up
    _fit(row, {field: getattr(server, field) for field in SERVER_FIELDS if field != "state"}, ("servers", name))
    for model, held in (server.models or {}).items():
        facts = {"context_length": held.context_length, "owned_by": held.owned_by}
        served = rows.ServedModel(name=model)
        _fit(served, {**facts, "capabilities": held.capabilities}, ("servers", name, "models", model), but="server")
    return row


def _name_models(server: rows.Server, wanted: dict[str, Held]) -> None:
    """Has exactly these named by operators. Where they name any these are all that the server serves, unless it has
    registered itself: what it may have named too it keeps until it has been asked.
    """
    others = server.models.exclude(name__in=wanted)
    if server.registered_by:
        registry.take_back(server, others.filter(named_by=OPERATOR))
    else:
        (others if wanted else others.filter(named_by=OPERATOR)).delete()
    found = [
        FoundModel(
            name,
            held.context_length,
            held.owned_by,
            None if held.capabilities is None else tuple(held.capabilities),
        )
        for name, held in wanted.items()
    ]
    registry.name_models(server, found)


def _keep_class(then: Declared, difference: Difference) -> None:
    name = difference.name
    if difference.act == "remove":
        rows.ModelClass.objects.filter(name=name).delete()
        return
    _fit_class(then, name).save()


def _fit_class(then: Declared, name: str) -> rows.ModelClass:
    declared = (then.classes or {})[name]
    row = rows.ModelClass.objects.filter(name=name).first() or rows.ModelClass(name=name)
    _fit(row, {field: getattr(declared, field) for field in Class.__struct_fields__}, ("classes", name))
    return row


def _keep_alias(then: Declared, difference: Difference) -> None:
    name = difference.name
    if difference.act == "remove":
        rows.Alias.objects.filter(name=name).delete()
        return
    _fit_alias(then, name).save()


def _fit_alias(then: Declared, name: str) -> rows.Alias:
    row = rows.Alias.objects.filter(name=name).first() or rows.Alias(name=name)
    _fit(row, {"model": (then.aliases or {})[name].model}, ("aliases", name))
    return row


def _fit(row: models.Model, values: dict[str, Any], path: tuple[str, ...], *, but: str = "") -> None:
    """Gives a row its values; Unfit where it can't be kept with them. `but` is a field that is not looked at."""
    for field, value in values.items():
        setattr(row, field, value)
    try:
        row.full_clean(exclude={but})
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise Unfit((*path, field) if field in values else path, "; ".join(messages)) from None
