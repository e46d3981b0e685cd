"""Servers come and go."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db import transaction

from apps.orchestration.dialects import FoundModel
from apps.orchestration.discovery import discover
from apps.orchestration.models import ServedModel, Server


def register(
    server_id: str,
    url: str,
    *,
    kind: str = "openai",
    models: Sequence[str] | None = None,
    weight: int = 1,
    api_key: str = "",
) -> Server:
    """Puts a server into the registry or brings its entry up to date, with the models it names itself.

    `models` says them instead of asking. ValidationError when a value is wrong, DiscoveryFailed when the server can't
    be asked; the registry is unchanged then.
    """
    fields = {**_address(url), "kind": kind, "weight": weight, "api_key": api_key}
    server = Server.objects.filter(server_id=server_id).first() or Server(server_id=server_id)
    for name, value in fields.items():
        setattr(server, name, value)
    server.full_clean()
    found = [FoundModel(name) for name in models] if models else discover(server.url, kind, api_key)
    with transaction.atomic():
        server.save()
        keep_models(server, found)
    return server


def refresh(server: Server) -> list[FoundModel]:
    """Asks a server anew for its models; DiscoveryFailed and ValidationError leave them as they were."""
    found = discover(server.url, server.kind, server.api_key)
    with transaction.atomic():
        keep_models(server, found)
    return found


def keep_models(server: Server, found: Sequence[FoundModel]) -> None:
    """Makes the server's models exactly those `found`; ValidationError when one of them can't be kept."""
    for model in found:
        ProhibitNullCharactersValidator()(model.name)
        ServedModel(name=model.name, context_length=model.context_length).clean_fields(exclude=("server",))
    server.models.exclude(name__in=[model.name for model in found]).delete()
    for model in found:
        ServedModel.objects.update_or_create(
            server=server,
            name=model.name,
            defaults={"context_length": model.context_length, "owned_by": model.owned_by[:64]},
        )


def _address(url: str) -> dict[str, str | int]:
    parts = urlsplit(url.strip())
    try:
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        port = 0
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
