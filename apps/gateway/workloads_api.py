"""`/orchestration/workload`: a server for work to come, and a place held there."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from ninja import Router

from apps.gateway.inference.doors import CHAT, EMBEDDINGS
from apps.gateway.limits.waiting import PRIORITIES
from apps.gateway.requests import GatewayRequest
from apps.gateway.workloads import SHAPE, Work, Workload, moment
from apps.orchestration.fleet import Model
from citadel.answer import Answer, json_answer
from citadel.decoding import decode
from citadel.description import answers
from citadel.errors import BadRequest, Conflict, Forbidden, LimitExceeded, NotFound, Unavailable
from citadel.permissions import OPERATE_FLEET, USE_MODELS, may, require

router = Router(tags=["Workloads"])

NAMED = {"low": 0.5, "medium": 1.0, "high": 4.0}
"""Complexities that have a name: how many times as long as usual the work takes."""

MOST_NAMED = 10
"""Holders of workloads of one id whom an operator is told."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Times = Annotated[float, msgspec.Meta(ge=0, le=1000)]


class Distribution(msgspec.Struct):
    """Work to come: for which model, how urgent, how much of it as a multiple of the usual, where best."""

    request_id: Annotated[str, msgspec.Meta(pattern=SHAPE)]
    model_required: Name
    priority: Literal["low", "normal", "high", "critical"] | None = None
    estimated_complexity: Times | Literal["low", "medium", "high"] | None = None
    client_info: dict[str, Any] | None = None
    preferred_servers: Annotated[list[Name], msgspec.Meta(max_length=100)] | None = None


class Distributed(msgspec.Struct):
    """Where a place is held, until when, and why there. The request that uses it goes to `endpoint` and names its id
    in `x-citadel-workload`.
    """

    request_id: str
    assigned_server: str
    endpoint: str
    estimated_completion: str
    load_balancing_decision: dict[str, Any]
    lease_expires: str


class Released(msgspec.Struct):
    """A place that was given back."""

    status: Literal["released"]
    request_id: str
    server: str


@router.post(
    "/distribute",
    openapi_extra=answers(Distributed, BadRequest, NotFound, Conflict, LimitExceeded, Unavailable, body=Distribution),
)
async def distribute_workload(request: GatewayRequest) -> Answer:
    """Chooses a server for work to come and holds a place there until it is used, released or the lease ends.

    Asked again with the same id, it tells of the place that is held. `estimated_complexity` is how many times as long
    as usual the work takes; `low` is 0.5, `medium` 1, `high` 4.
    """
    require(request.auth, USE_MODELS)
    asked, caller, pipeline = decode(request.body, Distribution), request.auth, request.pipeline
    model = pipeline.find_model(asked.model_required, caller, "model_required")
    priority = min(PRIORITIES[asked.priority or "normal"], caller.max_priority)
    work = Work(asked.request_id, caller, model, priority, _complexity(asked), asked.preferred_servers or ())
    return json_answer(_distributed(await pipeline.workloads.distribute(work), model))


@router.delete("/{request_id}", openapi_extra=answers(Released, NotFound, Conflict, Unavailable))
async def release_workload(request: GatewayRequest, request_id: str, key_id: str | None = None) -> Answer:
    """Gives a place back that this key holds. Operators may give back any: where several keys hold a workload of that
    id, and this one doesn't, `key_id` says whose is meant.
    """
    require(request.auth, USE_MODELS)
    own, workloads = request.auth.key_id, request.pipeline.workloads
    if may(request.auth, OPERATE_FLEET):
        whose = key_id or _meant(request_id, own, await workloads.holders(request_id))
    elif key_id in (None, own):
        whose = own
    else:
        raise Forbidden("Only operators give back what other keys hold.")
    workload = await workloads.release(request_id, whose)
    return json_answer(Released("released", request_id, workload.server))


def _meant(request_id: str, own: str, holders: Sequence[str]) -> str:
    """Of which key an operator means the workload of that id: the own, else the one that holds one; Conflict."""
    if own in holders or not holders:
        return own
    if len(holders) > 1:
        some = ", ".join(holders[:MOST_NAMED])
        message = f"Several keys hold a workload '{request_id}': say whose is meant by ?key_id=, one of {some}."
        raise Conflict(message, param="key_id")
    return holders[0]


def _complexity(asked: Distribution) -> float:
    if isinstance(asked.estimated_complexity, str):
        return NAMED[asked.estimated_complexity]
    return 1.0 if asked.estimated_complexity is None else asked.estimated_complexity


def _distributed(workload: Workload, model: Model) -> Distributed:
    return Distributed(
        workload.request_id,
        workload.server,
        (EMBEDDINGS if model.embeds else CHAT).path,
        moment(workload.done),
        dict(workload.decision),
        moment(workload.ends),
    )
