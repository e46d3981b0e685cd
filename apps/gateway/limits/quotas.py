"""Whose limits a request must keep to: its key's, its key's for a class of models, its team's, its model's. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from apps.orchestration.fleet import Model
from citadel.caller import Caller, plain_name
from citadel.redis import Argument
from citadel.sections import LimitsSection, QuotaLimit

MOST_KNOWN = 10_000
"""Callers with models whose terms are kept."""


class Quota(NamedTuple):
    """What one holder may send; 0 is no limit."""

    holder: str
    """Under which it is counted in Redis."""
    requests: int
    """In any 60 s."""
    tokens: int
    """In any 60 s, as reserved or used by the requests that were admitted in them."""
    concurrent: int
    whose: str
    """As an error says it."""


class Terms:
    """All quotas of a caller for a model, the caller's own first."""

    __slots__ = ("arguments", "concurrent", "counts_tokens", "quotas", "uncounted")

    def __init__(self, quotas: Sequence[Quota]):
        self.quotas = tuple(quotas)
        self.arguments: tuple[Argument, ...] = tuple(part for quota in quotas for part in quota[:4])
        """As the script takes them."""
        self.uncounted: tuple[Argument, ...] = tuple(part for quota in quotas for part in (*quota[:3], 0))
        """The same of a request that does not count among those that run."""
        self.concurrent = tuple(quota for quota in quotas if quota.concurrent)
        """Those that bound what runs at once."""
        self.counts_tokens = any(quota.tokens for quota in quotas)


class Quotas:
    """Works out the terms by the configuration, and keeps them."""

    def __init__(self, limits: LimitsSection):
        self._classes = limits.classes
        self._models = {plain_name(name): limit for name, limit in limits.models.items()}
        self._known: dict[tuple[str, str], tuple[Caller, Model, Terms]] = {}

    def terms(self, caller: Caller, model: Model) -> Terms:
        """What a request of `caller` to `model` must keep to."""
        known = self._known.get((caller.key_id, model.name))
        if known and known[0] is caller and known[1] is model:
            return known[2]
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        terms = Terms([quota for quota in self._of(caller, model) if any(quota[1:4])])
        self._known[caller.key_id, model.name] = (caller, model, terms)
        return terms

    def _of(self, caller: Caller, model: Model) -> list[Quota]:
        own = Quota(caller.key_id, *caller.limits, "This key")
        team = Quota(f"team:{caller.team}", *caller.team_limits, f"The team '{caller.team}'")
        name = plain_name(model.name)
        everybody = _quota(f"model:{name}", self._models.get(name), f"Everybody together, for the model '{name}',")
        return [own, self._of_class(caller, model), team, everybody]

    def _of_class(self, caller: Caller, model: Model) -> Quota:
        """A key's for a class; what it has a limit of its own for the class does not limit."""
        name = model.model_class.name if model.model_class else ""
        quota = _quota(f"{caller.key_id}:{name}", self._classes.get(name), f"This key, for {name} models,")
        own = caller.own_limits
        return quota._replace(
            requests=0 if "requests" in own else quota.requests,
            tokens=0 if "tokens" in own else quota.tokens,
            concurrent=0 if "concurrent" in own else quota.concurrent,
        )


def _quota(holder: str, limit: QuotaLimit | None, whose: str) -> Quota:
    if limit is None:
        return Quota(holder, 0, 0, 0, whose)
    return Quota(holder, limit.requests_per_minute, limit.tokens_per_minute, limit.concurrent, whose)


NO_TERMS = Terms(())
"""Of who has no limits but that of all together."""
