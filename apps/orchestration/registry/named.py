"""Whose word a server's models are (`ServedModel.named_by`).

What an operator names stays until an operator takes it back, what a registration names until one no longer does, and
what is found by asking the server until it is found no more. Where an operator has named all that a server serves
nothing that is found comes to that. What an operator says of a model (`ServedModel.said`) nobody else changes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import QuerySet

from apps.orchestration.dialects import DIALECTS, FoundModel
from apps.orchestration.discovery import Found
from apps.orchestration.models import ServedModel, Server

NamedBy = ServedModel.NamedBy
WORDS = ("", *NamedBy.values)
"""By whom a model is named, from the word that counts least."""
FACTS: dict[str, Any] = {"capabilities": None, "context_length": None, "owned_by": ""}
"""What may be said of a model, and what it has of that where nobody does."""

WRITTEN = ("named_by", "said", "ways", *FACTS)
"""The fields of a model that are written anew."""
AT_ONCE = 500
"""Models in one statement."""


def name_models(server: Server, models: Sequence[FoundModel]) -> None:
    """Has models that an operator names among the server's. What is said of one here is all that he says of it."""
    _write(server, models, NamedBy.OPERATOR)


def keep_named(server: Server, models: Sequence[str], found: Found) -> None:
    """Has those models that an operator names, what was found, and what a registration names."""
    server.models.filter(named_by=NamedBy.OPERATOR).update(named_by="")
    _unsay(server.models.exclude(said=[]))
    names = [DIALECTS[server.kind].one_name(name) for name in models]
    if names:
        server.models.filter(named_by="").exclude(name__in=names).delete()
    name_models(server, [FoundModel(name) for name in names])
    keep_models(server, found.models)


def keep_registered(server: Server, models: Sequence[FoundModel] | None, has_moved: bool) -> None:
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


def take_back(server: Server, rows: QuerySet[ServedModel]) -> None:
    """Takes back an operator's word that a server has some models, and what he has said of them."""
    _unsay(rows)
    unname(server, rows)


def _unsay(rows: Iterable[ServedModel]) -> None:
    for row in rows:
        for fact in row.said:
            setattr(row, fact, FACTS[fact])
        row.said = []
        row.save()


def keep_models(server: Server, found: Sequence[FoundModel]) -> None:
    """Makes the server's models those `found` and those that somebody named; where an operator has named all, these
    alone. ValidationError when one of them can't be kept.
    """
    if found and not server.listed:
        server.listed = True
        server.save(update_fields=["listed"])
    unify_names(server)
    known = dict(server.models.values_list("name", "named_by"))
    if set(known.values()) == {NamedBy.OPERATOR} and not server.registered_by:
        found = [model for model in found if model.name in known]
    _drop(server.models.exclude(name__in=[model.name for model in found]).filter(named_by=""))
    _write(server, found)


def unify_names(server: Server) -> None:
    """Has each of the server's models under its one name: somebody may have named it by another."""
    rows = {row.name: row for row in server.models.all()}
    for name, row in rows.items():
        one = DIALECTS[server.kind].one_name(name)
        if one == name:
            continue
        kept = rows.get(one, row)
        if kept is not row:
            for fact in {*row.said} - {*kept.said}:
                setattr(kept, fact, getattr(row, fact))
            kept.said = sorted({*row.said, *kept.said})
            kept.named_by = _stronger(row.named_by, kept.named_by)
            row.delete()
        kept.name = one
        kept.save()


def _write(server: Server, models: Sequence[FoundModel], named_by: str = "") -> None:
    """Adds and completes; a stronger word than `named_by` stays, and what an operator says of a model until another.

    Many at once: the epoch is raised by each statement.
    """
    known = {row.name: row for row in server.models.all()}
    changed: dict[str, ServedModel] = {}
    one_name = DIALECTS[server.kind].one_name
    for model in models:
        name = one_name(model.name)
        row = known.setdefault(name, ServedModel(server=server, name=name))
        ways = row.ways if named_by else [list(way) for way in model.ways]  # of these only the server itself knows
        values = {"named_by": _stronger(named_by, row.named_by), "ways": ways, **_facts(row, model, named_by)}
        if row.pk is None or any(getattr(row, field) != value for field, value in values.items()):
            for field, value in values.items():
                setattr(row, field, value)
            ProhibitNullCharactersValidator()(row.name)
            row.clean_fields(exclude=("server",))
            changed[row.name] = row
    ServedModel.objects.bulk_update([row for row in changed.values() if row.pk], WRITTEN, AT_ONCE)
    ServedModel.objects.bulk_create([row for row in changed.values() if not row.pk], AT_ONCE)


def _facts(row: ServedModel, model: FoundModel, named_by: str) -> dict[str, Any]:
    """What is known of a model with what is told of it now, and what of that operators have said."""
    capabilities = None if model.capabilities is None else list(model.capabilities)
    facts = {"capabilities": capabilities, "context_length": model.context_length, "owned_by": model.owned_by[:64]}
    told = {name: value for name, value in facts.items() if value != FACTS[name]}
    known = {name: getattr(row, name) for name in FACTS}
    if named_by == NamedBy.OPERATOR:
        taken_back = {name: FACTS[name] for name in row.said}
        return {**known, **taken_back, **told, "said": [*told]}
    said = {name: known[name] for name in row.said}
    return {**known, **told, **said, "said": row.said}


def _stronger(*words: str) -> str:
    return max(words, key=WORDS.index)


def drop_found(server: Server) -> None:
    """Has a server hold no longer what was found by asking it."""
    _drop(server.models.filter(named_by=""))


def _drop(rows: QuerySet[ServedModel]) -> None:
    """Deletes rows where there are any: by the attempt alone the epoch would move."""
    if rows.exists():
        rows.delete()
