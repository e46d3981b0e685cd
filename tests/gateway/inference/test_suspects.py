"""Who is suspected of making servers fail, and until when."""

import pytest

from apps.gateway.inference.failures import map_failure, meaning
from apps.gateway.inference.suspects import REMEMBERED_FOR, TOO_MANY, Suspects
from apps.orchestration.fleet import Server

SERVER = Server("s", "http://s", "openai")


@pytest.mark.parametrize(("status", "damaging"), [(500, True), (502, True), (504, False), (408, False), (503, False)])
def test_a_server_that_is_not_ready_says_nothing_of_the_request(status: int, damaging: bool) -> None:
    failure = meaning(status, b"", SERVER)
    assert getattr(failure, "damaging", None) is damaging


def test_of_what_goes_wrong_on_the_way_a_request_may_bring_about_some() -> None:
    errors = [TimeoutError(), ConnectionResetError(), ValueError()]
    assert [map_failure(error).damaging for error in errors] == [False, True, True]


def test_a_suspect_is_remembered_for_a_minute() -> None:
    suspects = Suspects()
    assert suspects.accuse(b"a", 0.0)
    assert suspects.knows(b"a", REMEMBERED_FOR)
    assert not suspects.knows(b"b", REMEMBERED_FOR)
    assert not suspects.knows(b"a", REMEMBERED_FOR + 1)


def test_when_there_are_many_it_is_the_servers() -> None:
    """Nor are those suspected any longer that were the first."""
    suspects = Suspects()
    names = [b"%d" % number for number in range(TOO_MANY + 1)]
    assert [suspects.accuse(name, 0.0) for name in names] == [True] * TOO_MANY + [False]
    assert not any(suspects.knows(name, 0.0) for name in names)
