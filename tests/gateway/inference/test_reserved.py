"""What is reserved for a request, and what of it goes on with its call when another takes that over."""

from collections.abc import Sequence
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.inference.reserved import NOTHING, Reserved
from apps.gateway.limits.admission import Question
from apps.gateway.limits.budgets import Claim, Purse, purses
from apps.gateway.limits.quotas import NO_TERMS
from citadel.caller import Budget

PURSES = purses((Budget(1, "key", "day", 100, 10**12), Budget(2, "team:red", "month", 100, None)), date(2026, 1, 1))
claims = st.lists(
    st.builds(Claim, st.sampled_from(PURSES), st.integers(0, 50)), max_size=3, unique_by=lambda one: one[0]
)


def reserved_by(admitted: Sequence[Claim], *more: Sequence[Claim]) -> Reserved:
    reserved = NOTHING.also(Question(NO_TERMS, None, "t", 7, claims=admitted))
    for one in more:
        reserved = reserved.grown(Question(None, None, "", claims=one))
    return reserved


@given(claims, st.lists(claims, max_size=4))
def test_what_is_claimed_again_and_again_is_one_question_more(admitted: list[Claim], more: list[list[Claim]]) -> None:
    reserved = reserved_by(admitted, *more)
    assert len(reserved.questions) == 1 + bool(more)
    for purse in PURSES:
        assert reserved.of(purse) == sum(
            claim.amount for one in (admitted, *more) for claim in one if claim.purse == purse
        )


@given(claims, st.lists(claims, max_size=4), claims, st.sets(st.sampled_from(PURSES)))
def test_nothing_is_claimed_twice_or_lost_when_a_call_goes_over(
    admitted: list[Claim], more: list[list[Claim]], used: list[Claim], shared: set[Purse]
) -> None:
    reserved = reserved_by(admitted, *more)
    stays, goes_over = reserved.parted(used, lambda purse: purse in shared)
    spent = {claim.purse: claim.amount for claim in used}
    for purse in PURSES:
        assert stays.of(purse) + goes_over.of(purse) == reserved.of(purse)
        if purse in shared:
            assert stays.of(purse) == min(spent.get(purse, 0), reserved.of(purse))
        else:
            assert purse not in {claim.purse for claim in goes_over.claims()}, "of which nothing is claimed for others"
    assert [question.tokens for question in goes_over.questions if question.terms] == [7], (
        "of this minute, with the call"
    )
    assert not any(question.terms for question in stays.questions)
