"""Teams, members, keys, who operates which servers, what may be spent, revoked tokens, clearings of cached answers."""

from apps.gateway.models.assignment import Assignment
from apps.gateway.models.budget import Budget, Price, Spend, Warned
from apps.gateway.models.clearing import Clearing
from apps.gateway.models.key import Key, KeyUse
from apps.gateway.models.membership import Membership
from apps.gateway.models.revoked_token import RevokedToken
from apps.gateway.models.team import Team

__all__ = [
    "Assignment",
    "Budget",
    "Clearing",
    "Key",
    "KeyUse",
    "Membership",
    "Price",
    "RevokedToken",
    "Spend",
    "Team",
    "Warned",
]
