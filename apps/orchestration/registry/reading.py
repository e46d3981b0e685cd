"""The registry as it is now."""

from apps.orchestration.listing import Row
from apps.orchestration.models import Epoch, Server


def epoch() -> int:
    """The number of the configuration as it is now."""
    return Epoch.objects.values_list("number", flat=True).get()


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
