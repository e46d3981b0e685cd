"""Whose limits a request must keep to."""

from apps.gateway.limits.admission import Question, refusal, standing
from apps.gateway.limits.quotas import Quota, Quotas
from apps.orchestration.fleet import Model, ModelClass
from citadel.caller import Caller, Limits
from citadel.sections import LimitsSection

LIMITS = LimitsSection.model_validate({"models": {"big:latest": {"tokens_per_minute": 1000}}})
HEAVY = Model("big", (), model_class=ModelClass("heavyweight"))


def caller(limits: Limits = Limits(60, 0, 5), own: frozenset[str] = frozenset(), team: Limits = Limits()) -> Caller:  # noqa: B008  # values
    return Caller("key", "k", "red", "developer", None, limits, own, team)


def test_key_class_team_and_model_each_have_theirs() -> None:
    terms = Quotas(LIMITS).terms(caller(team=Limits(100, 0, 0)), HEAVY)
    assert [quota[:4] for quota in terms.quotas] == [
        ("key", 60, 0, 5),
        ("key:heavyweight", 10, 0, 2),
        ("team:red", 100, 0, 0),
        ("model:big", 0, 1000, 0),
    ]
    assert terms.counts_tokens
    assert [quota.holder for quota in terms.concurrent] == ["key", "key:heavyweight"]
    assert terms.uncounted[3::4] == (0, 0, 0, 0)


def test_what_a_key_has_of_its_own_a_class_does_not_limit() -> None:
    terms = Quotas(LIMITS).terms(caller(Limits(500, 0, 5), frozenset({"requests"})), HEAVY)
    assert terms.quotas[1][:4] == ("key:heavyweight", 0, 0, 2)
    both = Quotas(LIMITS).terms(caller(Limits(500, 0, 50), frozenset({"requests", "concurrent"})), HEAVY)
    assert [quota.holder for quota in both.quotas] == ["key", "model:big"]


def test_who_has_no_limits_has_no_quotas() -> None:
    plain = Model("small", ())
    assert not Quotas(LIMITS).terms(caller(Limits()), plain).quotas


def test_terms_are_kept_until_the_caller_or_the_model_is_another() -> None:
    quotas, first, again = Quotas(LIMITS), caller(), caller(Limits(1, 0, 0))
    assert quotas.terms(first, HEAVY) is quotas.terms(first, HEAVY)
    assert quotas.terms(again, HEAVY).quotas[0][:4] == ("key", 1, 0, 0)
    assert quotas.terms(again, Model("big", ())).quotas[-1].holder == "model:big"


def test_headers_tell_of_whose_quota_the_least_is_left() -> None:
    quotas = (Quota("key", 60, 500, 0, ""), Quota("team", 100, 0, 0, ""), Quota("model", 0, 1000, 5, ""))
    told = dict(standing(quotas, [59, 400, 0, 7, 0, 0, 0, 300, 2], 60_000))
    assert told == {
        b"x-ratelimit-limit-requests": b"100",
        b"x-ratelimit-remaining-requests": b"7",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"300",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_who_needs_more_than_a_quota_ever_allows_is_not_told_to_come_back() -> None:
    terms = Quotas(LIMITS).terms(caller(Limits()), Model("big", ()))
    refused = refusal(8, Question(terms, None, "t", 5000), 0, 0, [])
    assert (refused.status_code, refused.code) == (429, "token_limit_too_small")
    assert "1000 tokens a minute" in refused.message and "5000" in refused.message
    headers = dict(refused.headers())
    assert b"retry-after" not in headers and headers[b"x-should-retry"] == b"false"
