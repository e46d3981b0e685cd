"""Where a server is, and what else of its entry changes with what is said of it."""

from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from apps.orchestration.models import Server
from apps.orchestration.moving import VERSION, differs, unless_said
from citadel.sections import USUAL_PORTS


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
        "base_path": parts.path.rstrip("/").removesuffix(VERSION),
    }


def changes_of(server: Server, fields: dict[str, Any]) -> dict[str, Any]:
    """What differs. What looked like a web server when it was asked last may only have been half awake."""
    said = {**unless_said(server, fields), **fields}
    if server.kind == Server.Kind.HTTP:
        said["kind"] = fields.get("kind", "")
    return {name: value for name, value in said.items() if differs(server, name, value)}


def apply(changes: dict[str, Any], server: Server) -> None:
    """Gives a server these values of its fields."""
    for name, value in changes.items():
        setattr(server, name, value)
