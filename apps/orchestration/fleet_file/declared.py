"""A fleet as it is declared, in a file or by the registry's rows, and what tells two of them apart. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from apps.orchestration.dialects import DIALECTS
from apps.orchestration.moving import unless_said, without_version

Labels = list[str] | dict[str, Any]
State = Literal["active", "draining", "disabled", "pending"]
Kind = Literal["", "openai", "ollama", "llamacpp", "vllm", "citadel", "http"]
Strategy = Literal["", "weighted_round_robin", "least_busy", "peak_ewma", "affinity"]
SECTIONS = ("servers", "classes", "aliases")
SECRETS, HIDDEN = frozenset({"api_key"}), "(hidden)"


class Held(msgspec.Struct, frozen=True):
    """A model that an operator has named, and what he says of it; its server says the rest."""

    context_length: int | None = None
    owned_by: str = ""
    capabilities: list[str] | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server. Its state and models stay as they are where nothing is said, and at its address its kind and key; the
    rest is its default.
    """

    hostname: str
    port: int
    scheme: Literal["http", "https"] = "http"
    base_path: str = ""
    kind: Kind | None = None
    """Empty: to be found out."""
    role: str = ""
    state: State | None = None
    weight: int = 1
    max_concurrent: int = 0
    capabilities: Labels = []
    services: Labels = []
    health_endpoint: str = ""
    models_endpoint: str = ""
    metrics_endpoint: str = ""
    models: dict[str, Held] | None = None
    """Those that an operator has named; without any the server says itself which ones it has."""
    api_key: str | None = None


class Class(msgspec.Struct, frozen=True, kw_only=True):
    """A class of models."""

    position: int = 100
    patterns: list[str] = []
    capability: str = ""
    servers: list[str] = []
    fallback: bool = True
    shares: dict[str, int] = {}
    equal_shares: bool = False
    strategy: Strategy = ""
    hedge_ms: int | None = None
    cache_chat: bool = False


class Alias(msgspec.Struct, frozen=True):
    """A name for a model."""

    model: str


Entry = Server | Class | Alias
E = TypeVar("E", Server, Class, Alias)


class Declared(msgspec.Struct, frozen=True):
    """A fleet, by section and name. None is a section of which nothing is said."""

    servers: dict[str, Server] | None = None
    classes: dict[str, Class] | None = None
    aliases: dict[str, Alias] | None = None

    def section(self, name: str) -> Mapping[str, Entry]:
        """The entries of a section; none where nothing is said of it."""
        found: Mapping[str, Entry] | None = getattr(self, name)
        return found or {}


class Change(NamedTuple):
    """One field that is to become another value; None is nothing. Secrets are not told."""

    field: str
    before: Any
    after: Any


class Difference(NamedTuple):
    """An entry that is to be added, changed or removed."""

    act: Literal["add", "change", "remove"]
    section: str
    name: str
    changes: tuple[Change, ...] = ()


def target(now: Declared, wanted: Declared, *, prune: bool = False) -> Declared:
    """What the fleet becomes by `wanted`: what it names as it says, the rest as it is `now`, or gone with `prune`.

    A section of which nothing is said stays whole in any case.
    """
    return Declared(
        _merged(now.servers, wanted.servers, prune),
        _merged(now.classes, wanted.classes, prune),
        _merged(now.aliases, wanted.aliases, prune),
    )


def differences(now: Declared, then: Declared) -> list[Difference]:
    """What must be done for the first to become the second, section by section, by name."""
    return [
        difference
        for section in SECTIONS
        for name in sorted(now.section(section).keys() | then.section(section).keys())
        if (difference := _difference(section, name, now.section(section).get(name), then.section(section).get(name)))
    ]


def unnamed(now: Declared, wanted: Declared) -> list[tuple[str, str]]:
    """Section and name of what there is and `wanted` does not name, in the sections that it has."""
    said = [section for section in SECTIONS if getattr(wanted, section) is not None]
    return [
        (section, name)
        for section in said
        for name in sorted(now.section(section).keys() - wanted.section(section).keys())
    ]


def strangers(fleet: Declared) -> list[tuple[str, str]]:
    """Class and server id of what classes say of servers that are not there: by mistake, or not yet."""
    there = fleet.section("servers").keys()
    return [
        (name, server_id)
        for name, row in sorted((fleet.classes or {}).items())
        for server_id in sorted({*row.servers, *row.shares} - there)
    ]


def told(found: Sequence[Difference]) -> Iterator[str]:
    """Lines for people: `+` is added, `-` removed, `~` changed."""
    for act, section, name, changes in found:
        yield f"{_SIGNS[act]} {_SINGULAR[section]} {name}"
        for field, before, after in changes:
            if act == "add":
                yield f"    {field}: {_text(after)}"
            else:
                yield f"    {field}: {_text(before)} → {_text(after)}"


_SIGNS = {"add": "+", "change": "~", "remove": "-"}
_SINGULAR = {"servers": "server", "classes": "class", "aliases": "alias"}
_BORN: dict[str, Any] = {"kind": "", "state": "active", "models": {}, "api_key": ""}
"""What a server begins with of which nothing is said."""


def _merged(now: Mapping[str, E] | None, wanted: Mapping[str, E] | None, prune: bool) -> dict[str, E]:
    before = now or {}
    kept = {} if prune and wanted is not None else dict(before)
    return kept | {name: _completed(entry, before.get(name)) for name, entry in (wanted or {}).items()}


def _completed(entry: E, before: E | None) -> E:
    """With what it says nothing of as it was, or as a new one has it."""
    if not isinstance(entry, Server):
        return entry
    entry = msgspec.structs.replace(entry, **without_version(msgspec.structs.asdict(entry)))
    silent: dict[str, Any] = {name: getattr(before, name) if before else born for name, born in _BORN.items()}
    if before:
        silent |= unless_said(before, msgspec.structs.asdict(entry))
    said = {name: value for name in _BORN if (value := getattr(entry, name)) is not None}
    if entry.models is not None:
        one_name = DIALECTS[said.get("kind", silent["kind"]) or ""].one_name
        said["models"] = {one_name(name): held for name, held in entry.models.items()}
    return msgspec.structs.replace(entry, **(silent | said))


def _difference(section: str, name: str, before: Entry | None, after: Entry | None) -> Difference | None:
    if after is None:
        return Difference("remove", section, name)
    changes = tuple(_changes(_fields(before) if before else _unsaid(after), _fields(after)))
    if before is None:
        return Difference("add", section, name, changes)
    return Difference("change", section, name, changes) if changes else None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for field in [*after, *(name for name in before if name not in after)]:
        one, other = before.get(field), after.get(field)
        if one != other:
            yield Change(field, one, other) if field not in SECRETS else Change(field, one and HIDDEN, other and HIDDEN)


def _fields(entry: Entry) -> dict[str, Any]:
    """Its fields, each model one of its own."""
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    models = fields.pop("models", None) or {}
    return fields | {f"model {name}": _facts(held) for name, held in models.items()}


def _unsaid(entry: Entry) -> dict[str, Any]:
    """What an entry has of which nothing is said, so that only the rest is told of a new one."""
    return {
        field.name: field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        for field in msgspec.structs.fields(entry)
        if not field.required and field.name not in _BORN
    } | {name: value for name, value in _BORN.items() if name != "models" and isinstance(entry, Server)}


def _facts(held: Held) -> dict[str, Any]:
    return {name: value for name in held.__struct_fields__ if (value := getattr(held, name)) not in (None, "")}


def _text(value: Any) -> str:
    if value == HIDDEN:
        return HIDDEN
    return "nothing" if value is None or value == "" else msgspec.json.encode(value).decode()
