"""The table of roles in Django's words, and what the policy says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.access.claims import role_of
from apps.gateway.access.console.headers import policy
from apps.gateway.access.console.providers import claims_of
from apps.gateway.access.console.roles import CONSOLE_ROLES, IN_DJANGO, in_django
from citadel.permissions import PERMISSIONS, ROLES
from citadel.sections import ProviderSection


def test_the_table_speaks_of_what_there_is() -> None:
    from django.apps import apps

    assert set(CONSOLE_ROLES) <= set(ROLES)
    assert set(IN_DJANGO) <= PERMISSIONS
    for name in frozenset().union(*IN_DJANGO.values()):
        app, _, codename = name.partition(".")
        verb, _, model = codename.partition("_")
        known = apps.get_model(app, model)
        assert verb in known._meta.default_permissions or codename in dict(known._meta.permissions)


def test_roles_hold_to_each_other_as_in_the_api() -> None:
    for role in CONSOLE_ROLES:
        for other in CONSOLE_ROLES:
            if ROLES[role] <= ROLES[other]:
                assert in_django(role) <= in_django(other)
    assert not in_django("developer")
    assert not any(".change_key" in name or ".add_" in name for name in in_django("auditor"))


SECTION = ProviderSection.model_validate(
    {
        "name": "x",
        "issuer": "https://x.example",
        "client_id": "c",
        "client_secret": "s",
        "roles": {"a": "auditor", "b": "admin"},
    }
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
)


@given(ANYTHING)
def test_a_role_comes_of_a_group_alone(said: object) -> None:
    role = role_of({"groups": said}, SECTION)
    groups = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    assert role == ("auditor" if "a" in groups else "admin" if "b" in groups else None)


@given(st.dictionaries(st.sampled_from(["id_token", "userinfo", "x"]), ANYTHING))
def test_no_nonsense_is_a_person(data: dict[str, object]) -> None:
    assert claims_of(data, SECTION, None) is None


@pytest.mark.parametrize("beside", [{}, {"sub": "s", "groups": ["a"], "iss": "other"}])
def test_the_tokens_word_comes_before_what_is_said_beside_it(beside: dict[str, object]) -> None:
    token = {"iss": "https://x.example/", "sub": "s", "exp": 1, "nonce": "n", "azp": "c"}
    assert claims_of({"id_token": token, "userinfo": beside}, SECTION, "n") == {**beside, **token}


def test_forms_may_lead_to_providers() -> None:
    assert policy(["https://x.example/realms/a", "https://x.example/b"]).endswith(
        "form-action 'self' https://x.example"
    )
    assert policy([]).endswith("form-action 'self'")
