"""The snapshot: what a worker knows of the fleet, as frozen values, replaced whole when the epoch moves."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from django.db import connection

from apps.orchestration.models import Alias, Epoch, ServedModel
from apps.orchestration.models import Server as ServerRow


@dataclass(frozen=True, slots=True)
class Server:
    """A server as the request path sees it. `url` has no slash at its end."""

    server_id: str
    url: str
    kind: str
    weight: int = 1
    state: str = "active"
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the fleet and the servers that hold it, ordered by their ids."""

    name: str
    servers: tuple[Server, ...]
    owned_by: str = "citadel"
    context_length: int | None = None
    """In tokens: the smallest of its servers' where they differ."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All of it at one epoch."""

    epoch: int
    models: Mapping[str, Model]
    aliases: Mapping[str, str]

    def find(self, name: str) -> Model | None:
        """The model that `name` asks for: itself, by an alias, or by Ollama's habit of leaving out `:latest`."""
        target = self.aliases.get(name, name)
        return self.models.get(target) or self.models.get(f"{target}:latest")

    @property
    def servers(self) -> dict[str, Server]:
        """Every server that holds a model, by id."""
        return {server.server_id: server for model in self.models.values() for server in model.servers}


EMPTY = Fleet(0, MappingProxyType({}), MappingProxyType({}))


def load() -> Fleet:
    """Reads the fleet from the database, on a connection of its own: that an older one is dead nobody would notice."""
    try:
        return _read()
    finally:
        connection.close()


def _read() -> Fleet:
    """The epoch first, so that a change in between only means reading again."""
    epoch = Epoch.objects.values_list("number", flat=True).get()
    rows = ServedModel.objects.select_related("server").order_by("name", "server__server_id")
    return Fleet(
        epoch, MappingProxyType(_models(rows)), MappingProxyType(dict(Alias.objects.values_list("name", "model")))
    )


def _models(rows: Iterable[ServedModel]) -> dict[str, Model]:
    servers: dict[int, Server] = {}
    held: dict[str, list[ServedModel]] = defaultdict(list)
    for row in rows:
        if row.server_id not in servers:
            servers[row.server_id] = _server(row.server)
        held[row.name].append(row)
    return {
        name: Model(
            name,
            tuple(servers[row.server_id] for row in found),
            owned_by=next((row.owned_by for row in found if row.owned_by), "citadel"),
            context_length=min((row.context_length for row in found if row.context_length), default=None),
        )
        for name, found in held.items()
    }


def _server(row: ServerRow) -> Server:
    return Server(row.server_id, row.url, row.kind, row.weight, row.state, row.api_key)
