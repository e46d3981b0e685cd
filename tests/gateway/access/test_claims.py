"""Claims by their names and by paths, as providers write them."""

from typing import Any

import pytest

from apps.gateway.access.claims import claim_of, role_of
from citadel.sections import IssuerSection

KEYCLOAK = {
    "realm_access": {"roles": ["offline_access", "it-audit"]},
    "resource_access": {"account": {"roles": ["view-profile"]}, "citadel.example": {"roles": ["it-operators"]}},
}


@pytest.mark.parametrize(
    ("claims", "name", "said"),
    [
        (KEYCLOAK, "realm_access.roles", ["offline_access", "it-audit"]),
        (KEYCLOAK, "resource_access.account.roles", ["view-profile"]),
        (KEYCLOAK, "resource_access.citadel.example.roles", ["it-operators"]),
        (KEYCLOAK, "resource_access.citadel.roles", None),
        (KEYCLOAK, "realm_access.roles.it-audit", None),
        (KEYCLOAK, "roles", None),
        ({"https://citadel.example/roles": "a"}, "https://citadel.example/roles", "a"),
        ({"a.b": "whole", "a": {"b": "path"}}, "a.b", "whole"),
        ({"a.b": None, "a": {"b": "path"}}, "a.b", None),
        ({"a.b": {"c": "longest"}, "a": {"b": {"c": "path"}}}, "a.b.c", "longest"),
        ({"a.b": {}, "a": {"b": {"c": "path"}}}, "a.b.c", "path"),
        ({"a": "b"}, "a.", None),
        ({"": {"a": 1}}, ".a", 1),
        ({"a": ["b"]}, "a.0", None),
    ],
    ids=str,
)
def test_a_claim_is_found_by_its_name_or_by_its_path(claims: dict[str, Any], name: str, said: Any) -> None:
    assert claim_of(claims, name) == said


def test_of_several_roles_the_first_that_is_configured_counts() -> None:
    entry: dict[str, Any] = {"issuer": "https://i.example", "audience": "a", "team": "t"}
    section = IssuerSection(
        **entry, roles_claim="realm_access.roles", roles={"it-operators": "operator", "it-audit": "auditor"}
    )
    assert role_of(KEYCLOAK, section) == "auditor"
    assert role_of({"realm_access": {"roles": ["it-audit", "it-operators"]}}, section) == "operator"
    assert role_of({"realm_access": {"roles": ["offline_access"]}}, section) is None
    for role in ("member", "viewer"):
        assert role_of(KEYCLOAK, IssuerSection(**entry, role=role)) == role
