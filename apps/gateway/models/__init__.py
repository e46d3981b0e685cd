"""Teams, their keys, and what was cleared of their cached answers."""

from apps.gateway.models.clearing import Clearing
from apps.gateway.models.key import Key, KeyUse
from apps.gateway.models.team import Team

__all__ = ["Clearing", "Key", "KeyUse", "Team"]
