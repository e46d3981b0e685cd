"""Where a server is, and what follows when that changes."""

from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from apps.orchestration.models import Server
from citadel.sections import USUAL_PORTS

ADDRESS = ("scheme", "hostname", "port", "base_path")
"""The fields of a server's address."""


def address_of(url: str) -> dict[str, Any]:
    """The fields of a server's address; ValidationError when it is none."""
    try:
        parts = urlsplit(url.strip())
        port = USUAL_PORTS.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        raise ValidationError({"url": f"{url!r} is not an address like http://host:11434"}) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValidationError({"url": f"{url!r} is not an address like http://host:11434"})
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValidationError({"url": "An address has no user, query or fragment; a key goes into api_key."})
    return {
        "scheme": parts.scheme,
        "hostname": parts.hostname,
        "port": port,
        "base_path": parts.path.rstrip("/").removesuffix("/v1"),
    }


def changes_of(server: Server, fields: dict[str, Any]) -> dict[str, Any]:
    """What differs. At another address there may be another kind of server, and the key for the old one is not its;
    what looked like a web server when it registered last may only have been half awake.
    """
    if server.kind == Server.Kind.HTTP:
        fields = {"kind": "", **fields}
    if moves(server, fields):
        fields = {"kind": "", "api_key": "", **fields}
    return {name: value for name, value in fields.items() if _differs(server, name, value)}


def moves(server: Server, fields: dict[str, Any]) -> bool:
    """Whether these fields give a server another address."""
    return any(_differs(server, name, fields[name]) for name in ADDRESS if name in fields)


def _differs(server: Server, name: str, value: Any) -> bool:
    """Whether a field is to have another value; a host's name is the same in any case."""
    before = getattr(server, name)
    return bool(before.lower() != value.lower() if name == "hostname" else before != value)


def apply(changes: dict[str, Any], server: Server) -> None:
    """Gives a server these values of its fields."""
    for name, value in changes.items():
        setattr(server, name, value)
