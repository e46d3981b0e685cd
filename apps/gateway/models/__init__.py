"""Teams and their keys."""

from apps.gateway.models.key import Key
from apps.gateway.models.team import Team

__all__ = ["Key", "Team"]
