"""Which share of a model's requests each of its servers gets. Pure."""

from collections.abc import Collection, Mapping

from apps.orchestration.fleet import Fleet, Model, Server

MOST_MODELS = 100
"""In one event; of more, it says how many there are."""


def shares(model: Model, away: Collection[str]) -> dict[str, float]:
    """The share of each server that is active and not `away`, by its weight or its class's rule; empty without any."""
    able = [server for server in model.servers if server.state == "active" and server.server_id not in away]
    rule = model.model_class
    if rule and rule.own is not None:
        own = [server for server in able if server.server_id in rule.own]
        able = own or (able if rule.fallback else [])
    weights = {server.server_id: _weight(server, model) for server in able}
    whole = sum(weights.values())
    return {server_id: round(weight / whole, 4) for server_id, weight in weights.items()}


def concerned(fleet: Fleet, server_id: str) -> list[Model]:
    """The models that a server holds."""
    return [model for model in fleet.models.values() if any(s.server_id == server_id for s in model.servers)]


def rebalanced(fleet: Fleet, server_id: str, away: Collection[str]) -> dict[str, Mapping[str, float]]:
    """The shares of the models that a server holds, of the first of them where there are many."""
    return {model.name: shares(model, away) for model in concerned(fleet, server_id)[:MOST_MODELS]}


def _weight(server: Server, model: Model) -> int:
    rule = model.model_class
    return rule.shares.get(server.server_id, 1) if rule and rule.shares else server.weight
