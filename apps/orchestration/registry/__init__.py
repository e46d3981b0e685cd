"""Servers and their models as they come, change and go: the only way to these rows, for all who write them.

An entry (`entries.py`) has an address (`addresses.py`), a state (`states.py`) and models by somebody's word
(`named.py`); servers are asked what they hold (`asking.py`).
"""

from apps.orchestration.registry.asking import discover_all, discover_and_keep, keep_found, refresh, shut_out
from apps.orchestration.registry.entries import (
    add,
    arrived,
    check_owner,
    check_remover,
    let_go,
    register,
    remove,
    take_out,
)
from apps.orchestration.registry.named import FACTS, keep_models, name_models, take_back, unify_names
from apps.orchestration.registry.reading import epoch, rows
from apps.orchestration.registry.states import change_state, keep_state, set_state

__all__ = [
    "FACTS",
    "add",
    "arrived",
    "change_state",
    "check_owner",
    "check_remover",
    "discover_all",
    "discover_and_keep",
    "epoch",
    "keep_found",
    "keep_models",
    "keep_state",
    "let_go",
    "name_models",
    "refresh",
    "register",
    "remove",
    "rows",
    "set_state",
    "shut_out",
    "take_back",
    "take_out",
    "unify_names",
]
