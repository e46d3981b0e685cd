"""Teams, members, keys, who operates which servers, budgets, sessions, revoked tokens, clearings of answers."""

from apps.gateway.models.assignment import Assignment
from apps.gateway.models.budget import Budget, Price, Spend, Warned
from apps.gateway.models.clearing import Clearing
from apps.gateway.models.key import Key, KeyUse
from apps.gateway.models.membership import Membership
from apps.gateway.models.revoked_token import RevokedToken
from apps.gateway.models.session import Session
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
    "Session",
    "Spend",
    "Team",
    "Warned",
]
