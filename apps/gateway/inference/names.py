"""The names by which models are asked for, and what is said of one that isn't there. Pure."""

import difflib
from bisect import bisect

from apps.orchestration.fleet import Fleet, Model
from citadel.caller import Caller
from citadel.errors import NotFound, Unavailable, Withheld

LONGEST = 255
"""Characters of a name that are told: as many as one may have."""
LISTED = 200
"""Names at most among which the nearest is looked for: who asks for what isn't there is not to cost much."""
BESIDE = 2
"""Of them, those on either side that are looked at letter by letter: each takes up to 0.1 ms."""


def usable(fleet: Fleet, caller: Caller) -> dict[str, Model]:
    """Every name that this caller's requests may ask for, in order."""
    aliases = {alias: model for alias in fleet.aliases if (model := fleet.find(alias))}
    names = sorted({**aliases, **fleet.models}.items())
    return {name: model for name, model in names if caller.may_use(name, model.name)}


def no_model(name: str, fleet: Fleet, param: str, caller: Caller) -> NotFound:
    """The error of one who asks for `name`, which is none that he may use; says which of those comes nearest."""
    kind = NotFound if caller.models is None else Withheld
    name = name[:LONGEST]
    near = nearest(name, fleet, caller) if len(fleet.models) + len(fleet.aliases) <= LISTED else None
    meant = f" Did you mean '{near}'?" if near else ""
    message = f"The model '{name}' does not exist or you do not have access to it.{meant} GET /v1/models lists yours."
    return kind(message, code="model_not_found", param=param, whose=caller.key_id)


def nearest(name: str, fleet: Fleet, caller: Caller) -> str | None:
    """The name that is most like another, of those that a caller may use and that stand beside it in the alphabet;
    None where none is much like it.
    """
    names = sorted(usable(fleet, caller), key=str.casefold)
    place = bisect(names, name.casefold(), key=str.casefold)
    beside = names[max(0, place - BESIDE) : place + BESIDE]
    return next(iter(difflib.get_close_matches(name, beside, n=1)), None)


def no_server(name: str, retry_after: float | None) -> Unavailable:
    """The error where all servers of a model are out."""
    message = f"No server of the model '{name[:LONGEST]}' is available."
    return Unavailable(message, code="no_server_available", retry_after=retry_after)
