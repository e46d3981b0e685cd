"""What a key may give another one."""

from citadel.caller import Caller
from citadel.permissions import beyond


def within(granted: Caller, giver: Caller) -> bool:
    """Whether `granted` may nothing that `giver` may not, from nowhere else, and no longer."""
    return not list(beyond(granted, giver))
