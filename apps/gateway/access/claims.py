"""What an identity provider says of somebody, and which role that makes here. Pure."""

from collections.abc import Mapping
from typing import Any

from citadel.sections import IssuerSection, ProviderSection


def claim_of(claims: Any, name: str) -> Any:
    """The claim of that name, or the one that its parts lead to; None where there is neither.

    Names hold dots themselves, as Auth0's do, which are addresses, and so do those of Keycloak's clients on the way to
    `resource_access.CLIENT.roles`: the whole counts first, then the longest beginning.
    """
    if not isinstance(claims, Mapping):
        return None
    if name in claims:
        return claims[name]
    dots = [place for place, letter in enumerate(name) if letter == "."]
    found = (claim_of(claims.get(name[:dot]), name[dot + 1 :]) for dot in reversed(dots))
    return next((said for said in found if said is not None), None)


def role_of(claims: Mapping[str, Any], section: IssuerSection | ProviderSection) -> str | None:
    """What somebody is here; None where the provider's word makes nothing of them."""
    said = claim_of(claims, section.roles_claim) if section.roles_claim else None
    groups = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    return next((role for name, role in section.roles.items() if name in groups), section.role)
