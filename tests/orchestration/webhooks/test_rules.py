"""What reports lead to, by rules: whatever comes in, it names a server and an action or nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.webhooks.rules import Act, Rule, acts, decide, look_up, mark, reports
from citadel.errors import BadRequest

FIRING = Rule({"status": "firing"}, ["labels.server_id", "labels.citadel_server"], "drain")
RESOLVED = Rule({"status": "resolved"}, ["labels.server_id", "labels.citadel_server"], "enable")
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=4), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("report", "act"),
    [
        ({"status": "firing", "labels": {"server_id": "s-1"}}, Act("s-1", "drain")),
        ({"status": "resolved", "labels": {"citadel_server": "s-2"}}, Act("s-2", "enable")),
        ({"status": "firing", "labels": {"server_id": "", "citadel_server": "s-2"}}, Act("s-2", "drain")),
        ({"status": "firing", "labels": {"instance": "s-1"}}, None),
        ({"status": "else", "labels": {"server_id": "s-1"}}, None),
        ({"status": "firing", "labels": {"server_id": 5}}, None),
        ({"status": "firing", "labels": {"server_id": "x" * 65}}, None),
        ({"status": "firing", "labels": "server_id"}, None),
        ({"labels": {"server_id": "s-1"}}, None),
        ({}, None),
    ],
)
def test_the_rules_for_alerts(report: dict[str, Any], act: Act | None) -> None:
    assert decide(report, [FIRING, RESOLVED]) == act


def test_the_first_rule_that_fits_and_says_a_server_decides() -> None:
    rules = [
        Rule({"severity": "crit*"}, ["host"], "disable"),
        Rule({}, ["server"], "drain"),
        Rule({}, ["host"], "keep"),
    ]
    assert decide({"severity": "critical", "host": "h", "server": "s"}, rules) == Act("h", "disable")
    assert decide({"severity": "critical", "server": "s"}, rules) == Act("s", "drain")
    assert decide({"severity": "low", "host": "h"}, rules) == Act("h", "keep")


def test_numbers_and_truths_fit_as_they_are_written() -> None:
    rule = Rule({"code": "5*", "down": "true"}, ["server"], "drain")
    assert decide({"code": 503, "down": True, "server": "s"}, [rule]) == Act("s", "drain")
    assert decide({"code": 404, "down": True, "server": "s"}, [rule]) is None
    assert decide({"code": 503, "down": None, "server": "s"}, [rule]) is None


def test_a_path_leads_through_keys_with_dots() -> None:
    assert look_up({"a.b": {"c": 1}}, "a.b.c") == 1
    assert look_up({"a": {"b.c": 2}}, "a.b.c") == 2
    assert look_up({"a": {"b": {"c": 3}}}, "a.b.c") == 3
    assert look_up({"a": [{"b": 1}]}, "a.b") is None


@given(json_values, st.text("ab.", max_size=8))
def test_looking_up_never_fails(value: Any, path: str) -> None:
    look_up(value, path)


@given(st.dictionaries(st.text("ab.", max_size=4), json_values, max_size=4))
def test_any_report_leads_to_a_server_or_nowhere(report: dict[str, Any]) -> None:
    for act in acts([report], [Rule({}, ["a", "a.b", "b"], "drain")], ["a", "b"]):
        assert 0 < len(act.server_id) <= 64


def test_a_report_is_known_by_all_of_its_identity_or_not_at_all() -> None:
    identity = ["fingerprint", "startsAt", "status"]
    one = {"fingerprint": "f", "startsAt": "t", "status": "firing", "endsAt": "1"}
    assert mark(one, identity) == mark({**one, "endsAt": "2"}, identity) != ""
    assert mark(one, identity) != mark({**one, "status": "resolved"}, identity)
    assert mark({**one, "startsAt": None}, identity) == ""
    assert mark(one, []) == ""


def test_a_cause_is_what_its_fields_say() -> None:
    rules = [Rule({"status": "firing"}, ["s"], "drain"), Rule({"status": "resolved"}, ["s"], "enable")]
    one = {"status": "firing", "s": "a", "id": 1}
    begun, ended, other = acts([one, {**one, "status": "resolved"}, {**one, "id": 2}], rules, ["id", "status"], ["id"])
    assert begun.mark != ended.mark
    assert begun.cause == ended.cause != other.cause
    assert acts([one], rules, ["status"])[0].cause == ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "alerts"),
        ({"alerts": {}}, "alerts"),
        ({"alerts": ["a"]}, "alerts"),
        ({"alerts": [{"labels": {}}] * 1001}, "alerts"),
        ({"alerts": [{"labels": {}}, {"status": "firing"}]}, "alerts[1].labels"),
    ],
)
def test_bodies_that_are_none(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        reports(body, "alerts", ["labels"])
    assert caught.value.param == param


def test_a_body_may_be_one_report() -> None:
    assert reports({"a": 1}, "", ["a"]) == [{"a": 1}]
    assert reports({"alerts": []}, "alerts", ["labels"]) == []
