"""Which share of a model's requests each of its servers gets. Pure."""

from collections.abc import Collection, Mapping

from apps.orchestration.fleet import Fleet, Model
from apps.orchestration.health.conditions import Records
from apps.orchestration.routing.weights import lasting

MOST_MODELS = 100
"""In one event; of more, it says how many there are."""


def shares(model: Model, away: Collection[str], records: Records) -> dict[str, float]:
    """The share of each server that is active and not `away`, by its weight or its class's rule and how it is; empty
    without any.
    """
    able = [server for server in model.servers if server.state == "active" and server.server_id not in away]
    rule = model.model_class
    if rule and rule.own is not None:
        own = [server for server in able if server.server_id in rule.own]
        able = own or (able if rule.fallback else [])
    weights = lasting(model, able, records)
    whole = sum(weights)
    return {server.server_id: round(weight / whole, 4) for server, weight in zip(able, weights, strict=True)}


def concerned(fleet: Fleet, server_id: str) -> list[Model]:
    """The models that a server holds."""
    return [model for model in fleet.models.values() if any(s.server_id == server_id for s in model.servers)]


def rebalanced(fleet: Fleet, server_id: str, away: Collection[str], records: Records) -> dict[str, Mapping[str, float]]:
    """The shares of the models that a server holds, of the first of them where there are many."""
    return {model.name: shares(model, away, records) for model in concerned(fleet, server_id)[:MOST_MODELS]}
