"""A plan in words that people and records keep: who was to be asked, in which order, who was not and why. Pure."""

from typing import Any

from apps.orchestration.fleet import Model
from apps.orchestration.routing.plan import ONLY, Candidates, Plan

MOST_TOLD = 16
"""Servers of a plan that a record keeps."""


def told(plan: Plan, model: Model) -> dict[str, Any] | None:
    """The decision as a request's record keeps it; None where there was nothing to decide: a model's only server is
    well.
    """
    return None if plan.strategy == ONLY else decision(plan, model)


def decision(plan: Plan, model: Model) -> dict[str, Any]:
    """The same in any case."""
    said: dict[str, Any] = {"strategy": plan.strategy, "order": [s.server_id for s in plan.order[:MOST_TOLD]]}
    if model.model_class:
        said["class"] = model.model_class.name
    if plan.trial:
        said["trial"] = plan.trial.server_id
    if plan.dropped:
        said["dropped"] = {dropped.server_id: dropped.reason for dropped in plan.dropped[:MOST_TOLD]}
    return said


def outlined(plan: Plan, model: Model) -> dict[str, Any]:
    """The same for whoever may use models, without what others have said of the servers."""
    said = decision(plan, model)
    if plan.dropped:
        said["dropped"] = {dropped.server_id: dropped.outline for dropped in plan.dropped[:MOST_TOLD]}
    return said


def explained(plan: Plan, candidates: Candidates, model: Model, *, outline: bool = False) -> dict[str, Any]:
    """The decision in full, with the weights that it was made by, for who asks what would happen; as an `outline`,
    without what others have said of the servers.
    """
    weights = {server.server_id: weight / 100 for tier in candidates.tiers for server, weight in tier}
    return {
        "model": model.name,
        "class": model.model_class.name if model.model_class else None,
        "strategy": plan.strategy or None,
        "order": [
            {
                "server_id": server.server_id,
                "weight": weights.get(server.server_id),
                "max_concurrent": server.max_concurrent,
                "must_load_the_model": server.server_id in candidates.must_load,
                "paused": server.server_id in candidates.paused,
            }
            for server in plan.order
        ],
        "trial": plan.trial.server_id if plan.trial else None,
        "dropped": [
            {"server_id": dropped.server_id, "reason": dropped.outline if outline else dropped.reason}
            for dropped in plan.dropped
        ],
        "lacking": plan.lacking or None,
        "retry_after": plan.retry_after or None,
    }
