"""`/orchestration/failover`: an operator gives a server up."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from django.db import transaction
from ninja import Router

from apps.orchestration.catching_up import caught_up, on_server
from apps.orchestration.failover import Failovers
from apps.orchestration.models import Server
from apps.orchestration.registry import change_state
from apps.orchestration.requests import FleetRequest
from citadel.answer import Answer, json_answer
from citadel.decoding import decode_object
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.permissions import OPERATE_FLEET, require
from citadel.redis import RedisError

router = Router(tags=["Fleet"])


class Outcome(msgspec.Struct):
    """What becomes of a server's models, so many: by model the shares of who has it now, and which nobody has."""

    models: int
    shares: Mapping[str, Mapping[str, float]]
    without_server: list[str]


class FailedOver(msgspec.Struct):
    """An answer about a server that is given up."""

    status: Literal["failover_initiated"]
    server_id: str
    result: Outcome


@router.post("/{server_id}", openapi_extra=answers(FailedOver, BadRequest, NotFound, Conflict, Unavailable))
async def fail_over(request: FleetRequest, server_id: str) -> Answer:
    """Gives a server up: it is drained, what can move moves. Undone by enabling it. What a body says is not looked
    at, if it is an object.
    """
    require(request.auth, OPERATE_FLEET, server=server_id)
    decode_object(request.body)
    runtime = request.runtime
    failovers = Failovers(runtime.config, runtime.board, runtime.pool)
    try:
        records = await runtime.board.read()  # before anything is changed: who reads a 503 takes it for nothing done
        await on_server(drain, server_id, f"key {request.auth.key_id}")
        await caught_up(runtime)  # or requests would still go there after this answer
        result = await failovers.begin(server_id, "manual", runtime.fleet, records)
        if result is None:
            result = await failovers.outcome(server_id, runtime.fleet, records)
    except RedisError:
        raise Unavailable("The state of the fleet is out of reach for the moment.", retry_after=1) from None
    told = FailedOver("failover_initiated", server_id, msgspec.convert(result, Outcome))
    return json_answer(told)


@transaction.atomic
def drain(server_id: str, by: str) -> None:
    """Gives a server no new work, and tells it; Server.DoesNotExist, Conflict for one that gets none anyway."""
    server = Server.objects.select_for_update().get(server_id=server_id)
    if server.state not in (Server.State.ACTIVE, Server.State.DRAINING):
        raise Conflict(f"This server is {server.state}: there is nothing to move away from it.", param="server_id")
    server.holds.all().delete()  # from now on it is an operator who drains it
    change_state(server, Server.State.DRAINING, by)
