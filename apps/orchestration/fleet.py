"""The snapshot: what a worker knows of the fleet, as frozen values, replaced whole when the epoch moves."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from django.db import connection

from apps.orchestration.dialects import DIALECTS
from apps.orchestration.models import Alias, Epoch, ServedModel
from apps.orchestration.models import ModelClass as ModelClassRow
from apps.orchestration.models import Server as ServerRow
from citadel import hop

SAME = {"embeddings": "embedding"}
"""Other words for what a model can do."""

CALLED = frozenset({"active", "draining"})
"""States in which a server is probed, and asked for its models when it comes back."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server as the request path sees it. `url` has no slash at its end."""

    server_id: str
    url: str
    kind: str
    weight: int = 1
    state: str = "active"
    api_key: str = field(default="", repr=False)
    max_concurrent: int = 0
    """Requests at once; 0 is no limit."""
    capabilities: frozenset[str] = frozenset()
    """What it says of itself."""
    registered_by: str = ""
    """Id of the key that registered it; empty for an operator."""
    health_endpoint: str = ""
    metrics_endpoint: str = ""
    models_endpoint: str = ""
    """Paths that probes ask instead of what its kind has; empty where it has none of its own."""
    known: bool = True
    """Whether its kind has been told or found out, and a model of it, where such a kind has a list of them."""
    listed: bool = False
    """Whether its list of models has been read where it is now: it has one."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A model on one server: what it can do there, None where the server does not say; its context in tokens."""

    capabilities: frozenset[str] | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class ModelClass:
    """The routing rule of a class of models."""

    name: str
    own: frozenset[str] | None = None
    """Ids of the servers that are the class's own; None: all."""
    fallback: bool = True
    """Whether others may serve what its own can't, or have no place for."""
    shares: Mapping[str, int] | None = None
    """Instead of weights, by server; who is not named has a share of 1."""
    strategy: str = ""
    """Empty: as configured."""
    hedge_ms: int | None = None
    """When a second server is asked; 0: at the p95 of the first; None: never."""
    cache_chat: bool = False
    """Whether chats and completions are cached that could not be repeated."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the fleet and the servers that hold it, ordered by their ids; without those that wait for approval."""

    name: str
    servers: tuple[Server, ...]
    owned_by: str = "citadel"
    context_length: int | None = None
    """In tokens: the smallest of its servers' where they differ."""
    holdings: Mapping[str, Holding] = field(default_factory=dict)
    """By server id."""
    model_class: ModelClass | None = None
    reserved: frozenset[str] = frozenset()
    """Ids of its servers that are another class's own: they are kept free for that where they can be."""
    ways: tuple[hop.Way, ...] = ()
    """Through which other Citadels it is had; none where a server holds it itself, or does not say."""

    @property
    def capabilities(self) -> frozenset[str] | None:
        """What it can do on one server or another; None where one of them does not say."""
        told = [holding.capabilities for holding in self.holdings.values()]
        return None if None in told or not told else frozenset().union(*(one for one in told if one))

    def context_on(self, server_id: str) -> int:
        """The tokens that a server takes at once; 0 where it does not say."""
        holding = self.holdings.get(server_id)
        return (holding.context_length or 0) if holding else 0

    @property
    def embeds(self) -> bool:
        """Whether it is for vectors, not for chat: as its servers say, else by its class."""
        told = self.capabilities
        if told is None or {"chat", "embedding"} <= told:  # some servers can't rule out either
            return self.model_class is not None and self.model_class.name == "embedding"
        return "embedding" in told


@dataclass(frozen=True, slots=True)
class Fleet:
    """All of it at one epoch."""

    epoch: int
    models: Mapping[str, Model]
    aliases: Mapping[str, str]
    servers: Mapping[str, Server] = field(default_factory=dict)
    """Every server by id, those without models too."""

    def find(self, name: str) -> Model | None:
        """The model that `name` asks for: itself, by an alias, or by Ollama's habit that `:latest` may be left out."""
        target = self.aliases.get(name, name)
        models = self.models
        return models.get(target) or models.get(f"{target}:latest") or models.get(target.removesuffix(":latest"))

    def holders(self, name: str) -> frozenset[str]:
        """Ids of the servers that hold the model of that very name; none where there is no such model."""
        model = self.models.get(name)
        return frozenset(server.server_id for server in model.servers) if model else frozenset()


EMPTY = Fleet(0, MappingProxyType({}), MappingProxyType({}))


def relocated(before: Fleet, after: Fleet) -> list[tuple[Server, Server]]:
    """The servers that have another address or another kind now: as they were, and as they are."""
    known = before.servers
    return [
        (was, now)
        for server_id, now in after.servers.items()
        if (was := known.get(server_id)) and (was.url, was.kind) != (now.url, now.kind)
    ]


def load() -> Fleet:
    """Reads the fleet from the database, on a connection of its own: that an older one is dead nobody would notice."""
    try:
        return _read()
    finally:
        connection.close()


def _read() -> Fleet:
    """The epoch first, so that a change in between only means reading again."""
    epoch = Epoch.objects.values_list("number", flat=True).get()
    rows = list(ServerRow.objects.order_by("server_id"))
    held = list(ServedModel.objects.order_by("name", "server__server_id"))
    holders = {row.server_id for row in held}
    servers = {row.pk: _server(row, row.pk in holders) for row in rows}
    models = _models(held, servers, list(ModelClassRow.objects.all()))
    return Fleet(
        epoch,
        MappingProxyType(models),
        MappingProxyType(dict(Alias.objects.values_list("name", "model"))),
        MappingProxyType({server.server_id: server for server in servers.values()}),
    )


def _models(
    rows: Iterable[ServedModel], servers: Mapping[int, Server], classes: Sequence[ModelClassRow]
) -> dict[str, Model]:
    held: dict[str, list[ServedModel]] = defaultdict(list)
    for row in rows:
        server = servers.get(row.server_id)  # None: it came between the two questions, and the epoch has moved
        if server and server.state != "pending":  # nobody has approved what it says
            held[row.name].append(row)
    return {
        name: _model(name, found, tuple(servers[row.server_id] for row in found), classes)
        for name, found in held.items()
    }


def _model(
    name: str, held: Sequence[ServedModel], servers: tuple[Server, ...], classes: Sequence[ModelClassRow]
) -> Model:
    model_class = class_of(name, servers, classes)
    return Model(
        name,
        servers,
        owned_by=next((row.owned_by for row in held if row.owned_by), "citadel"),
        context_length=min((row.context_length for row in held if row.context_length), default=None),
        holdings=MappingProxyType({server.server_id: _holding(row) for server, row in zip(servers, held, strict=True)}),
        model_class=model_class,
        reserved=reserved(servers, [row for row in classes if model_class is None or row.name != model_class.name]),
        ways=_ways(held),
    )


def _ways(held: Sequence[ServedModel]) -> tuple[hop.Way, ...]:
    if not all(row.ways for row in held):
        return ()
    return hop.fewest(tuple(way) for row in held for way in row.ways)


def _holding(row: ServedModel) -> Holding:
    told = row.capabilities
    return Holding(None if told is None else frozenset(SAME.get(word, word) for word in told), row.context_length)


def _server(row: ServerRow, has_models: bool) -> Server:
    has_list = bool(row.models_endpoint or DIALECTS[row.kind].models_path)
    return Server(
        row.server_id,
        row.url,
        row.kind or "http",  # until it is known what it is, nothing is known but whether somebody is there
        row.weight,
        row.state,
        row.api_key,
        row.max_concurrent,
        _labels(row.capabilities),
        row.registered_by,
        row.health_endpoint,
        row.metrics_endpoint,
        row.models_endpoint,
        bool(row.kind) and (has_models or not has_list),
        row.listed,
    )


def _labels(told: object) -> frozenset[str]:
    """The words of a list, or the keys of an object whose values don't deny them."""
    if isinstance(told, dict):
        return frozenset(name for name, value in told.items() if value)
    return frozenset(told) if isinstance(told, list) else frozenset()


def class_of(name: str, servers: Sequence[Server], classes: Iterable[ModelClassRow]) -> ModelClass | None:
    """The first class whose pattern fits the model's name, or whose capability all servers say that serve it: by its
    word a server puts into a class what it holds itself, and takes nothing from the others.
    """
    active = [server for server in servers if server.state == "active"]
    for row in classes:
        told = row.capability and active and all(row.capability in server.capabilities for server in active)
        if told or any(fnmatchcase(name.lower(), str(pattern).lower()) for pattern in row.patterns):
            return _class(row, servers)
    return None


def reserved(servers: Iterable[Server], classes: Sequence[ModelClassRow]) -> frozenset[str]:
    """Which of the servers are some class's own."""
    return frozenset(server.server_id for server in servers if any(_is_own(server, row) for row in classes))


def _is_own(server: Server, row: ModelClassRow) -> bool:
    return server.server_id in row.servers or bool(row.capability and row.capability in server.capabilities)


def _class(row: ModelClassRow, servers: Sequence[Server]) -> ModelClass:
    own: frozenset[str] | None = None
    if row.servers or row.capability:
        own = frozenset(row.servers) | {
            server.server_id for server in servers if server.state == "active" and _is_own(server, row)
        }
    shares = {server.server_id: 1 for server in servers} if row.equal_shares else dict(row.shares)
    return ModelClass(
        row.name,
        own=own,
        fallback=row.fallback,
        shares=MappingProxyType(shares) if shares else None,
        strategy=row.strategy,
        hedge_ms=row.hedge_ms,
        cache_chat=row.cache_chat,
    )
