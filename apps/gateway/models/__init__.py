"""Teams, their members and keys, what may be spent, revoked tokens, people's sessions, and clearings of the cache."""

from apps.gateway.models.budget import Budget, Price, Spend, Warned
from apps.gateway.models.clearing import Clearing
from apps.gateway.models.key import Key, KeyUse
from apps.gateway.models.membership import Membership
from apps.gateway.models.revoked_token import RevokedToken
from apps.gateway.models.session import Session
from apps.gateway.models.team import Team

__all__ = [
    "Budget",
    "Clearing",
    "Key",
    "KeyUse",
    "Membership",
    "Price",
    "RevokedToken",
    "Session",
    "Spend",
    "Team",
    "Warned",
]
