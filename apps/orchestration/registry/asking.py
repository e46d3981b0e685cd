"""Servers are asked what they are and hold, and the registry is kept in step with what they say."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import structlog
from django.core.exceptions import ValidationError
from django.db import Error, connection, transaction

from apps.orchestration.dialects import FoundModel
from apps.orchestration.discovery import DiscoveryFailed, Found, MetItself, Place, discover, place_of
from apps.orchestration.fleet import CALLED
from apps.orchestration.models import ServedModel, Server
from apps.orchestration.registry.named import keep_models
from apps.orchestration.registry.states import set_state

log = structlog.get_logger("citadel.registry")

ASKED_AT_ONCE = 16
"""Servers of one command or action."""


def refresh(server: Server, *, settle: bool = False) -> list[FoundModel]:
    """Asks a server anew for its models; DiscoveryFailed and ValidationError leave them as they were."""
    place = place_of(server)
    found = discover(place, settle=settle)
    keep_found(server, place, found)
    return found.models


def discover_and_keep(server_id: str, *, settle: bool = False) -> list[FoundModel]:
    """Brings what is known of a server's kind and models in step with what it says; `settle` as `discover` has it.

    DiscoveryFailed leaves that as it was; a server that turns out to be this very Citadel is disabled, and one that is
    not to be called is not asked. Server.DoesNotExist where it has gone.
    """
    server = Server.objects.get(server_id=server_id)
    if server.state not in CALLED:
        raise DiscoveryFailed(f"it is {server.state}, and called once it is enabled")
    place = place_of(server)
    connection.close_if_unusable_or_obsolete()  # none waits for the server; within a transaction it stays
    try:
        return refresh(server, settle=settle)
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
    if server.registered_by or not server.models.filter(named_by=ServedModel.NamedBy.OPERATOR).exists():
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
