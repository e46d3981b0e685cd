"""`/orchestration/route`: what would become of a request, without doing it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from ninja import Router

from apps.gateway.inference.doors import CHAT
from apps.gateway.inference.needs import needs_of
from apps.gateway.openai.schemas import ChatRequest
from apps.gateway.requests import GatewayRequest
from apps.orchestration.fleet import Model
from apps.orchestration.routing.explain import explained
from apps.orchestration.routing.plan import Needs, Plan
from citadel.answer import Answer, json_answer
from citadel.description import answers
from citadel.errors import BadRequest, NotFound
from citadel.permissions import SEE_FLEET, USE_MODELS, may, require
from citadel.redis import RedisError

router = Router(tags=["Fleet"])


class Needed(msgspec.Struct):
    """What the request needs of its server; of a model's only one nothing, unless requests may wait there."""

    capabilities: list[str]
    tokens: int
    """Of context, at least."""
    streams: bool
    session: bool
    """Whether it goes where the requests of its conversation went before."""


class Considered(msgspec.Struct):
    """A server that the request may go to. `in_use` is null where it has no limit, or that can't be known now."""

    server_id: str
    weight: float | None
    max_concurrent: int
    in_use: int | None
    must_load_the_model: bool
    paused: bool
    """Whether it asked not to be asked for a while, by a 429 or by a 404 for the model."""


class NotConsidered(msgspec.Struct):
    """A server that holds the model, and why the request does not go there."""

    server_id: str
    reason: str


class Explanation(msgspec.Struct):
    """What would become of a request: the servers in their order, the others with the reason, and which it would be."""

    model: str
    model_class: str | None = msgspec.field(name="class")
    strategy: str | None
    needs: Needed
    order: list[Considered]
    trial: str | None
    """A server that is out and would be tried first, if it is this request's turn."""
    dropped: list[NotConsidered]
    lacking: str | None
    """What the request needs and no server can do."""
    retry_after: float | None
    waiting: int | None
    """Requests that wait for a place on the model's servers."""
    outcome: Literal["served", "tried", "waits", "unavailable", "refused"]
    assigned_server: str | None


@router.post("/explain", openapi_extra=answers(Explanation, BadRequest, NotFound, body=ChatRequest))
async def explain_route(request: GatewayRequest) -> Answer:
    """What would become of a chat request: which servers it may go to, in which order, and why not to the others.

    Nothing is sent, counted or remembered.
    """
    require(request.auth, USE_MODELS)
    pipeline = request.pipeline
    asked = CHAT.read(request.body)
    model = pipeline.find_model(asked.model, request.auth)
    needs = needs_of(CHAT, asked, model, request.raw_headers, pipeline.router.strategy_of(model))
    plan, candidates = pipeline.router.explain(model, needs)
    taken, waiting = await _places(request, model, plan)
    outcome, assigned = outcome_of(plan, taken)
    told = explained(plan, candidates, model, outline=not may(request.auth, SEE_FLEET))
    told["order"] = [{**row, "in_use": taken.get(row["server_id"])} for row in told["order"]]
    told |= {"needs": _needed(needs), "waiting": waiting, "outcome": outcome, "assigned_server": assigned}
    return json_answer(msgspec.convert(told, Explanation))


def outcome_of(plan: Plan, taken: Mapping[str, int]) -> tuple[str, str | None]:
    """What would become of a request with this plan while so many places are taken, and on which server."""
    if plan.lacking:
        return "refused", None
    if not plan.order:
        return ("tried", plan.trial.server_id) if plan.trial else ("unavailable", None)
    for server in plan.order:
        if not server.max_concurrent or taken.get(server.server_id, 0) < server.max_concurrent:
            return "served", server.server_id
    return "waits", None


async def _places(request: GatewayRequest, model: Model, plan: Plan) -> tuple[dict[str, int], int | None]:
    """How many places are taken where there are limits, and how many wait; nothing while that can't be asked."""
    limited: Sequence[str] = [server.server_id for server in plan.order if server.max_concurrent]
    try:
        *taken, waiting = await request.pipeline.limiter.in_use(model.name, limited)
    except RedisError:
        return {}, None
    return dict(zip(limited, taken, strict=True)), waiting


def _needed(needs: Needs) -> dict[str, Any]:
    return {
        "capabilities": sorted(needs.capabilities),
        "tokens": needs.tokens,
        "streams": needs.streams,
        "session": needs.affinity is not None,
    }
