"""What webhooks do to a server's state. It drains for as long as one cause holds it, such as an alert that fires.

Only what causes hold is enabled again: what an operator has taken out no webhook brings back. An operator's own word
ends all holds (`registry.set_state`). All of it within the transaction that has locked the server's row.
"""

from collections.abc import Callable, Mapping

from apps.orchestration.models import Hold, Hook, Server
from apps.orchestration.registry import change_state

State = Server.State
UNKNOWN = ""
"""The cause of a report that says none: its type has no such fields, or it lacks them. Any end of its type ends it."""


def drain(server: Server, hook: Hook, cause: str) -> bool:
    """Holds an active server, or one that is held already; gives whether its state is another one now."""
    was_active = server.state == State.ACTIVE
    if was_active:
        change_state(server, State.DRAINING, _by(hook))
    elif server.state != State.DRAINING or not server.holds.exists():
        return False
    Hold.objects.get_or_create(server=server, hook=hook, cause=cause)
    return was_active


def enable(server: Server, hook: Hook, cause: str) -> bool:
    """Ends what a cause holds, and what is held for causes that nobody knows; the others of its type hold on, such as
    other alerts about the server. Gives whether it is active again.
    """
    ended, _ = server.holds.filter(hook=hook, cause__in=(cause, UNKNOWN)).delete()
    if not ended or server.state != State.DRAINING or server.holds.exists():
        return False
    change_state(server, State.ACTIVE, _by(hook))
    return True


def disable(server: Server, hook: Hook, cause: str) -> bool:
    """Takes a server out; gives whether it was in."""
    if server.state not in (State.ACTIVE, State.DRAINING):
        return False
    server.holds.all().delete()
    change_state(server, State.DISABLED, _by(hook))
    return True


ACTIONS: Mapping[str, Callable[[Server, Hook, str], bool]] = {"drain": drain, "enable": enable, "disable": disable}


def _by(hook: Hook) -> str:
    return f"webhook {hook.name}"
