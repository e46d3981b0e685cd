"""Which servers are to be called: an operator's word, or a webhook's."""

from functools import partial
from typing import NamedTuple

from django.db import transaction

from apps.orchestration.events import tell_now
from apps.orchestration.fleet import CALLED
from apps.orchestration.health.glance import acquit
from apps.orchestration.messages import Drained, Enabled
from apps.orchestration.models import Server
from citadel.errors import Conflict


class Turned(NamedTuple):
    """A server whose state has been set, and whether it is to be asked now what it is and holds: while it was not
    called nobody has asked it, or nobody has found out its kind yet.
    """

    server: Server
    ask: bool


def set_state(server_id: str, state: str, by: str, url: str = "") -> Turned:
    """Enables, drains or disables a server by an operator's word, and tells it: no webhook's hold is in force any more,
    nor, once it is enabled, what webhooks and the traffic say of its health. Server.DoesNotExist; Conflict where the
    operator has said at which `url` it is and it has another one.
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
