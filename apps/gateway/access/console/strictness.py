"""How strictly an OpenID provider must have looked at who somebody is: asked for, and read from its ID token."""

from collections.abc import Mapping
from typing import Any

from citadel.sections import ProviderSection

CLOCKS = 30
"""Seconds by which the provider's clock may be off."""


def question(section: ProviderSection) -> dict[str, str]:
    """What a provider is asked for by its settings (OpenID Connect Core 1.0, 3.1.2.1); it need not heed that."""
    asked = {"acr_values": " ".join(section.acr), "max_age": "" if section.max_age is None else str(section.max_age)}
    return {name: value for name, value in asked.items() if value}


def is_met(token: Mapping[str, Any], section: ProviderSection, now: float) -> bool:
    """Whether an ID token says that its person has signed in as the settings want. What it leaves out isn't so."""
    ways, at = token.get("amr"), token.get("auth_time")
    return (
        (not section.acr or token.get("acr") in section.acr)
        and (not section.amr or (isinstance(ways, list) and any(way in section.amr for way in ways)))
        and (section.max_age is None or _is_recent(at, now - section.max_age - CLOCKS))
    )


def _is_recent(at: object, since: float) -> bool:
    return isinstance(at, int | float) and not isinstance(at, bool) and at >= since
