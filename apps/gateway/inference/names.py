"""The names by which models are asked for, and what is said of one that isn't there. Pure."""

import difflib
from collections.abc import Collection

from apps.orchestration.fleet import Fleet, Model
from citadel.caller import Caller
from citadel.errors import NotFound, Unavailable, Withheld

LONGEST = 255
"""Characters of a name that are told: as many as one may have."""
COMPARED = 200
"""Names at most among which the nearest is looked for: a thousand take 40 ms."""


def usable(fleet: Fleet, caller: Caller) -> dict[str, Model]:
    """Every name that this caller's requests may ask for, in order."""
    aliases = {alias: model for alias in fleet.aliases if (model := fleet.find(alias))}
    names = sorted({**aliases, **fleet.models}.items())
    return {name: model for name, model in names if caller.may_use(name, model.name)}


def no_model(name: str, names: Collection[str], param: str, caller: Caller) -> NotFound:
    """The error of one who asks for `name`, not among the `names` that he may use; says the nearest of them."""
    kind = NotFound if caller.models is None else Withheld
    name = name[:LONGEST]
    near = difflib.get_close_matches(name, names, n=1) if len(names) <= COMPARED else []
    meant = f" Did you mean '{near[0]}'?" if near else ""
    message = f"The model '{name}' does not exist or you do not have access to it.{meant} GET /v1/models lists yours."
    return kind(message, code="model_not_found", param=param, whose=caller.key_id)


def no_server(name: str, retry_after: float | None) -> Unavailable:
    """The error where all servers of a model are out."""
    message = f"No server of the model '{name[:LONGEST]}' is available."
    return Unavailable(message, code="no_server_available", retry_after=retry_after)
