"""`/orchestration/failover`: an operator gives a server up."""

import msgspec
from django.db import transaction
from ninja import Router

from apps.orchestration.catching_up import caught_up, in_registry
from apps.orchestration.failover import Failovers
from apps.orchestration.models import Server
from apps.orchestration.registry import change_state
from apps.orchestration.requests import FleetRequest
from citadel.answer import JSON, Answer
from citadel.decoding import decode_object
from citadel.errors import BadRequest, Conflict, NotFound, Unavailable
from citadel.permissions import OPERATE_FLEET, require
from citadel.redis import RedisError

router = Router(tags=["Fleet"])

LONGEST_ID = 64
_RESULT = {
    "type": "object",
    "required": ["models", "shares", "without_server"],
    "properties": {
        "models": {"type": "integer", "description": "How many models the server holds."},
        "shares": {"type": "object", "description": "By model, the share of each server that has it now."},
        "without_server": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Models that nobody serves now.",
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["status", "server_id", "result"],
    "properties": {
        "status": {"type": "string", "enum": ["failover_initiated"]},
        "server_id": {"type": "string"},
        "result": _RESULT,
    },
}
_DESCRIBED = {
    "responses": {
        200: {"content": {"application/json": {"schema": _ANSWER}}},
        **{
            kind.status: {"$ref": f"#/components/responses/{kind.__name__}"}
            for kind in (BadRequest, NotFound, Conflict, Unavailable)
        },
    }
}


@router.post("/{server_id}", openapi_extra=_DESCRIBED)
async def fail_over(request: FleetRequest, server_id: str) -> Answer:
    """Gives a server up: it is drained, what can move moves. Undone by enabling it. What a body says is not looked
    at, if it is an object.
    """
    require(request.auth, OPERATE_FLEET, server=server_id)
    decode_object(request.body)
    runtime = request.runtime
    failovers = Failovers(runtime.config, runtime.board.redis, runtime.pool)
    try:
        await in_registry(drain, server_id, f"key {request.auth.key_id}")
        await caught_up(runtime)  # or requests would still go there after this answer
        records = await runtime.board.read()
        result = await failovers.begin(server_id, "manual", runtime.fleet, records)
        if result is None:
            result = await failovers.outcome(server_id, runtime.fleet, records)
    except RedisError:
        raise Unavailable("The state of the fleet is out of reach for the moment.", retry_after=1) from None
    answer = {"status": "failover_initiated", "server_id": server_id, "result": result}
    return Answer(msgspec.json.encode(answer), headers=[JSON])


@transaction.atomic
def drain(server_id: str, by: str) -> None:
    """Gives a server no new work, and tells it; NotFound, Conflict for one that gets none anyway."""
    given = server_id if len(server_id) <= LONGEST_ID and "\0" not in server_id else ""
    server = Server.objects.select_for_update().filter(server_id=given).first()
    if server is None:
        raise NotFound(f"There is no server '{server_id[:LONGEST_ID]}'.", param="server_id")
    if server.state not in (Server.State.ACTIVE, Server.State.DRAINING):
        raise Conflict(f"This server is {server.state}: there is nothing to move away from it.", param="server_id")
    server.holds.all().delete()  # from now on it is an operator who drains it
    change_state(server, Server.State.DRAINING, by)
