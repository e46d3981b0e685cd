"""Who is suspected of making servers fail, and until when."""

from types import SimpleNamespace
from typing import Any

import pytest

from apps.gateway.inference.calls.suspects import REMEMBERED_FOR, TOO_MANY, Suspects
from apps.gateway.inference.http.failures import map_failure, meaning
from apps.orchestration.fleet import Server

SERVER = Server("s", "http://s", "openai")


@pytest.mark.parametrize(("status", "damaging"), [(500, True), (502, True), (504, False), (408, False), (503, False)])
def test_a_server_that_is_not_ready_says_nothing_of_the_request(status: int, damaging: bool) -> None:
    failure = meaning(status, b"", SERVER)
    assert getattr(failure, "damaging", None) is damaging


def test_of_what_goes_wrong_on_the_way_a_request_may_bring_about_some() -> None:
    errors = [TimeoutError(), ConnectionResetError(), ValueError()]
    assert [map_failure(error).damaging for error in errors] == [False, True, True]


def two_workers() -> tuple[Suspects, Suspects]:
    """Who look at one board, without delay."""
    board: Any = SimpleNamespace(suspects={})
    board.suspect = lambda digest, now: board.suspects.update({digest: now})
    board.absolve = lambda digest: board.suspects.pop(digest, None)
    return Suspects(board), Suspects(board)


def test_a_suspect_is_remembered_for_a_minute_by_all_workers() -> None:
    workers = two_workers()
    assert workers[0].accuse(b"a", 0.0)
    for suspects in workers:
        assert suspects.suspected_at(b"a", REMEMBERED_FOR) == 0.0
        assert suspects.suspected_at(b"b", REMEMBERED_FOR) is None
        assert suspects.suspected_at(b"a", REMEMBERED_FOR + 1) is None


def test_an_answer_clears_it() -> None:
    accuser, other = two_workers()
    accuser.accuse(b"a", 0.0)
    accuser.accuse(b"b", 0.0)
    accuser.absolve(b"a")
    for suspects in (accuser, other):
        assert (suspects.suspected_at(b"a", 1.0), suspects.suspected_at(b"b", 1.0)) == (None, 0.0)


def test_when_there_are_many_it_is_the_servers() -> None:
    """Nor are those suspected any longer that were the first."""
    first, second = two_workers()
    names = [b"%d" % number for number in range(TOO_MANY + 1)]
    assert [first.accuse(name, 0.0) for name in names[:-1]] == [True] * TOO_MANY
    assert not second.accuse(names[-1], 0.0)
    assert {suspects.suspected_at(name, 0.0) for name in names for suspects in (first, second)} == {None}
