"""A worker's share of the limits, by which it goes while Redis is away."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.limits.admission import ADMITTED, AT_ONCE, GLOBAL, REQUESTS, TOKENS, TOO_LARGE, Question
from apps.gateway.limits.quotas import Quota, Terms
from apps.gateway.limits.share import WINDOW, Share
from apps.gateway.limits.workers import BACK_WITHIN, Workers
from citadel.sections import GlobalLimit

NO_GLOBAL = GlobalLimit(requests_per_minute=0)
_numbers = iter(range(1_000_000))


def question(*quotas: Quota, tokens: int = 0, counted: bool = True) -> Question:
    return Question(Terms(quotas), None, f"t{next(_numbers)}", tokens, counted)


def ann(requests: int = 0, tokens: int = 0, concurrent: int = 0) -> Quota:
    return Quota("ann", requests, tokens, concurrent, "This key")


@given(
    limit=st.integers(1, 20),
    workers=st.integers(1, 6),
    arrivals=st.lists(st.tuples(st.floats(0, 25), st.integers(0, 5)), max_size=100),
)
def test_all_workers_together_admit_the_limit_or_one_each(
    limit: int, workers: int, arrivals: list[tuple[float, int]]
) -> None:
    shares, now, admitted = [Share(NO_GLOBAL, Workers(workers)) for _ in range(workers)], 1000.0, list[float]()
    for pause, number in arrivals:
        now += pause
        verdict, _, retry = shares[number % workers].admit(question(ann(limit)), {}, now)
        if verdict == ADMITTED:
            admitted.append(now)
            assert sum(time > now - WINDOW for time in admitted) <= max(limit, workers)
        else:
            assert verdict == REQUESTS
            again = shares[number % workers].admit(question(ann(limit)), {}, now + retry + 1e-6)
            assert again[0] == ADMITTED, "retry says when"
            admitted.append(now := now + retry + 1e-6)


def test_tokens_are_shared_and_one_request_is_let_in_that_needs_more_than_the_share() -> None:
    share, quota = Share(NO_GLOBAL, Workers(4)), ann(tokens=100)
    first = question(quota, tokens=60)
    assert share.admit(first, {}, 1.0)[0] == ADMITTED
    assert share.admit(question(quota, tokens=1), {}, 2.0) == (TOKENS, 0, 59.0)
    share.settle(first, 5, 2.0)
    assert share.admit(question(quota, tokens=20), {}, 3.0)[0] == ADMITTED
    assert share.admit(question(quota, tokens=1), {}, 4.0)[0] == TOKENS
    assert share.admit(question(quota, ann(requests=1), tokens=101), {}, 4.0) == (TOO_LARGE, 0, 0.0)
    assert share.admit(question(quota, tokens=25), {}, 63.5)[0] == ADMITTED


def test_it_says_when_enough_has_left() -> None:
    share, quota = Share(NO_GLOBAL, Workers(4)), ann(tokens=1000)
    for at, tokens in ((0.0, 10), (50.0, 140), (55.0, 100)):
        assert share.admit(question(quota, tokens=tokens), {}, at)[0] == ADMITTED
    assert share.admit(question(quota, tokens=20), {}, 56.0) == (TOKENS, 0, 54.0)
    assert share.admit(question(quota, tokens=10), {}, 56.0) == (TOKENS, 0, 4.0)
    assert share.admit(question(quota, tokens=300), {}, 56.0) == (TOKENS, 0, 59.0), "alone it may be more than the part"
    share, quota = Share(NO_GLOBAL, workers := Workers(1)), ann(requests=4)
    for at in (0.0, 1.0, 2.0, 3.0):
        assert share.admit(question(quota), {}, at)[0] == ADMITTED
    workers.told(2, 4.0)
    assert share.admit(question(quota), {}, 4.0) == (REQUESTS, 0, 58.0), "two must leave for one, since there are two"


def test_what_finds_no_place_has_used_up_nothing() -> None:
    share, quota = Share(GlobalLimit(requests_per_minute=1, burst=2), Workers(1)), ann(requests=2)
    for _ in range(3):
        refused = question(quota)
        assert share.admit(refused, {}, 1.0)[0] == ADMITTED
        share.withdraw(refused)
    assert [share.admit(question(quota), {}, 1.0)[0] for _ in range(3)] == [ADMITTED, ADMITTED, REQUESTS]


@pytest.mark.parametrize("takes", [1.0, 59.0, 61.0])
def test_what_is_used_beyond_a_reservation_counts_from_then_on(takes: float) -> None:
    share, quota = Share(NO_GLOBAL, Workers(1)), ann(requests=3, tokens=100)
    first = question(quota, tokens=90)
    assert share.admit(first, {}, 100.0)[0] == ADMITTED
    share.settle(first, 500, 100.0 + takes)
    for after in (0.0, 59.9):
        assert share.admit(question(quota, tokens=90), {}, 100.0 + takes + after)[0] == TOKENS
    for _ in range(3):  # it is no request
        assert share.admit(question(quota, tokens=1), {}, 160.1 + takes)[0] == ADMITTED


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (4, 1), (8, 2), (9, 2)])
def test_what_runs_at_once_is_shared(limit: int, most: int) -> None:
    share, running = Share(NO_GLOBAL, Workers(4)), Counter[str]()
    for _ in range(most):
        assert share.admit(question(ann(concurrent=limit)), running, 1.0)[0] == ADMITTED
        running["ann"] += 1
    assert share.admit(question(ann(concurrent=limit)), running, 1.0)[0] == AT_ONCE
    assert share.admit(question(ann(concurrent=limit), counted=False), running, 1.0)[0] == ADMITTED


def test_what_one_quota_refuses_uses_up_none_of_another() -> None:
    share, team = Share(NO_GLOBAL, Workers(1)), Quota("team:red", 1, 0, 0, "The team")
    assert share.admit(question(ann(2), team), {}, 1.0)[0] == ADMITTED
    assert share.admit(question(ann(2), team), {}, 1.0)[:2] == (REQUESTS, 1)
    assert share.admit(question(ann(2)), {}, 1.0)[0] == ADMITTED


def test_the_bucket_of_all_clients_is_shared() -> None:
    share = Share(GlobalLimit(requests_per_minute=600, burst=8), Workers(4))
    assert [share.admit(question(), {}, 100.0)[0] for _ in range(3)] == [ADMITTED, ADMITTED, GLOBAL]
    assert share.admit(question(), {}, 100.5)[0] == ADMITTED, "2.5 a second"


def test_it_is_one_of_all_workers_that_redis_told_of() -> None:
    """Of two machines with two workers each."""
    workers = Workers(2)
    share = Share(GlobalLimit(requests_per_minute=600, burst=12), workers)
    workers.told(4, 0.0)
    quota = ann(requests=8, concurrent=8)
    assert [share.admit(question(quota), {}, 100.0)[0] for _ in range(3)] == [ADMITTED, ADMITTED, REQUESTS]
    assert share.admit(question(ann(concurrent=8)), {"ann": 2}, 100.0)[0] == AT_ONCE
    assert [share.admit(question(), {}, 100.0)[0] for _ in range(2)] == [ADMITTED, GLOBAL]
    assert share.admit(question(), {}, 100.5)[0] == ADMITTED, "2.5 a second"


def test_fewer_workers_are_believed_when_all_could_have_come_back() -> None:
    workers = Workers(2)
    workers.told(1, 0.0)
    assert workers.count == 2, "those of this machine"
    workers.told(16, 1.0)
    workers.told(12, 1.5)
    assert workers.count == 12
    workers.lost(10.0)
    workers.told(1, 70.0)
    assert workers.count == 2, "long after"
    workers.told(16, 80.0)
    for forgot in (workers.lost, lambda now: workers.told(0, now)):
        forgot(100.0)
        workers.told(3, 100.0 + BACK_WITHIN)
        assert workers.count == 16
        workers.told(17, 100.0 + BACK_WITHIN)
        assert workers.count == 17
        workers.told(16, 100.1 + BACK_WITHIN)
        assert workers.count == 16


def test_holders_whose_windows_are_empty_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.gateway.limits.share.MOST_KNOWN", 3)
    share = Share(NO_GLOBAL, Workers(1))
    for number in range(10):
        quota = Quota(f"key{number}", 1, 0, 0, "This key")
        assert share.admit(question(quota), {}, number * 100.0)[0] == ADMITTED
    assert len(share._windows) <= 3


def test_they_are_looked_for_now_and_then_and_for_new_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten thousand that are busy each look takes milliseconds."""
    monkeypatch.setattr("apps.gateway.limits.share.MOST_KNOWN", 3)
    share, looks = Share(NO_GLOBAL, Workers(1)), list[float]()
    look = share._forget_empty
    monkeypatch.setattr(share, "_forget_empty", lambda now: (looks.append(now), look(now)))
    for tenths in range(40):
        quota = Quota(f"key{tenths % 6}", 100, 0, 0, "This key")
        assert share.admit(question(quota), {}, tenths / 10)[0] == ADMITTED
    assert looks == [0.3]
    for tenths in range(40, 60):
        assert share.admit(question(Quota(f"new{tenths}", 1, 0, 0, "This key")), {}, tenths / 10)[0] == ADMITTED
    assert looks == [0.3, 4.0, 5.0]
