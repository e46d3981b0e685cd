"""Teams, their keys, tokens that were revoked, and what was cleared of their cached answers."""

from apps.gateway.models.clearing import Clearing
from apps.gateway.models.key import Key, KeyUse
from apps.gateway.models.revoked_token import RevokedToken
from apps.gateway.models.team import Team

__all__ = ["Clearing", "Key", "KeyUse", "RevokedToken", "Team"]
