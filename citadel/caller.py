"""Who asks: a frozen value that every way of proving it ends in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. Limits of 0 mean none; `models` is None where all are allowed, else `plain_name`s."""

    key_id: str
    name: str
    team: str
    role: str
    models: frozenset[str] | None
    requests_per_minute: int
    concurrent: int
    expires: float | None = None
    """Seconds since the epoch, or None."""
    max_priority: int = 3
    """The highest that its requests may have in waiting rooms, from 0 (low) to 3 (critical)."""

    def may_use(self, *names: str) -> bool:
        """Whether this caller may send requests to a model that has these names."""
        return self.models is None or not self.models.isdisjoint(map(plain_name, names))


def plain_name(model: str) -> str:
    """A model's name without what Ollama says where nobody says a tag: both mean one model."""
    return model.removesuffix(":latest")


STRANGER = Caller("", "stranger", "", "", frozenset(), 0, 0)
"""Who asks without proving to be anybody: may do nothing that needs a permission."""
