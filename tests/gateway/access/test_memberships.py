"""What a person may as a member of teams, and what goes on to keys."""

from dataclasses import replace

import pytest

from citadel.caller import Caller, Limits
from citadel.permissions import MANAGE_KEYS, MANAGE_TEAMS, PERMISSIONS, SEE_KEYS, USE_MODELS, may, outranks
from tests.gateway.access.giving import within

PERSON = Caller(
    "",
    "person",
    "",
    "developer",
    None,
    limits=Limits(60, 0, 5),
    memberships=frozenset({("a", "owner"), ("b", "member"), ("c", "viewer")}),
)
KEY = Caller("k", "key", "a", "developer", None, limits=Limits(60, 0, 5), max_priority=2)


@pytest.mark.parametrize(
    ("team", "more"),
    [("a", {SEE_KEYS, MANAGE_KEYS}), ("b", {SEE_KEYS}), ("c", {SEE_KEYS}), ("d", set()), ("", set()), (None, set())],
)
def test_a_role_holds_in_its_team_alone(team: str | None, more: set[str]) -> None:
    assert {one for one in PERMISSIONS if may(PERSON, one, team)} == {USE_MODELS, *more}


@pytest.mark.parametrize("role", ["owner", "member", "viewer", "admin", "operator", "auditor", "server"])
def test_a_membership_goes_on_to_no_key(role: str) -> None:
    assert within(KEY, PERSON)
    assert not within(replace(KEY, role=role), PERSON)


def test_an_owner_ends_what_may_no_more_than_an_owner() -> None:
    for role in ("owner", "member", "viewer"):
        assert outranks(PERSON, replace(KEY, role=role))
    assert not outranks(PERSON, replace(KEY, role="operator"))
    assert not outranks(PERSON, replace(KEY, team="d"))
    assert not outranks(PERSON, replace(KEY, team="b", role="owner"))


def test_a_key_has_the_team_that_it_belongs_to() -> None:
    owner = replace(KEY, role="owner")
    assert within(replace(owner, key_id="other"), owner)
    assert not within(replace(KEY, team="b"), owner)
    assert owner.teams == {"a"}
    assert PERSON.teams == {"a", "b", "c"}
    assert not may(PERSON, MANAGE_TEAMS, "a")
