"""When a server has another address, and what of it does not go there, whoever moves it: a registration, the command
line, the console or the fleet file. Pure.
"""

from collections.abc import Mapping
from typing import Any

ADDRESS = ("scheme", "hostname", "port", "base_path")
"""The fields of a server's address."""
ENDPOINTS = ("health_endpoint", "models_endpoint", "metrics_endpoint")
"""Paths on a server, below its base path."""
VERSION = "/v1"
"""What OpenAI's clients have at the end of a server's address, and Citadel in the paths that it asks for."""
STAYS_BEHIND = ("kind", "api_key")
"""What a server that moves loses unless it is said anew: there may be one of another kind, and who may not see its key
could have it sent to a machine of his own. What was found there is lost too (`registry.arrived`).
"""


def without_version(fields: Mapping[str, Any]) -> dict[str, str]:
    """The base path without /v1 at its end, or all would be asked for below /v1/v1, and the endpoints, which are below
    that, with it; nothing where it ends otherwise.
    """
    base = fields.get("base_path") or ""
    if not base.endswith(VERSION):
        return {}
    paths = {name: path for name in ENDPOINTS if (path := fields.get(name))}
    return {
        "base_path": base.removesuffix(VERSION),
        **{name: path if f"{path}/".startswith(f"{VERSION}/") else f"{VERSION}{path}" for name, path in paths.items()},
    }


def moves(server: Any, fields: Mapping[str, Any]) -> bool:
    """Whether these fields give a server another address. It is a row of the registry or of the fleet file."""
    return any(differs(server, name, fields[name]) for name in ADDRESS if name in fields)


def unless_said(server: Any, fields: Mapping[str, Any]) -> dict[str, str]:
    """The kind and the key that a server has by these fields where nothing is said of the two."""
    is_elsewhere = moves(server, fields)
    return {name: "" if is_elsewhere else getattr(server, name) for name in STAYS_BEHIND}


def differs(server: Any, name: str, value: Any) -> bool:
    """Whether a field is to have another value; a host's name is the same in any case."""
    before = getattr(server, name)
    return bool(before.lower() != value.lower() if name == "hostname" else before != value)
