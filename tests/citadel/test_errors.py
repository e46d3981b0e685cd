"""The error tree: each class has its own status, type and code, and OpenAI's shape."""

import json
import re
from collections.abc import Iterator
from datetime import date

import pytest

import apps.gateway.inference.streams.stream  # noqa: F401  # which defines errors of its own
from apps.gateway.limits.admission import Overspent, Refused
from apps.gateway.limits.budgets import Claim, purses
from apps.gateway.limits.waiting import Estimate, NoPlace
from citadel import errors
from citadel.answer import error_answer
from citadel.caller import Budget
from citadel.errors import BackendRefused, CitadelError, LimitExceeded, TooLarge, Unauthenticated, Unavailable

OPENAI_TYPES = {"invalid_request_error", "permission_error", "rate_limit_error", "server_error", "upstream_error"}


def tree(root: type[CitadelError] = CitadelError) -> Iterator[type[CitadelError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


def make(kind: type[CitadelError]) -> CitadelError:
    if issubclass(kind, BackendRefused):
        return kind("Too long.", status=400)
    if issubclass(kind, Overspent):
        [purse] = purses((Budget(1, "key", "total", 5, None),), date(2026, 1, 1))
        return kind(Claim(purse, 6))
    if issubclass(kind, Refused):
        return kind("Too many.", "rate_limit_exceeded", 1500, [])
    if issubclass(kind, NoPlace):
        return kind(", and none of them is free in time.", Estimate(3, 1500))
    if issubclass(kind, errors.Draining):
        return kind()
    return kind("What is wrong.")


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.__name__)
def test_each_class_has_a_status_a_type_a_code_and_openais_shape(kind: type[CitadelError]) -> None:
    error = make(kind)
    assert 400 <= error.status_code < 600
    assert error.type in OPENAI_TYPES
    body = json.loads(error.body())
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] == error.message
    assert re.fullmatch("[a-z_]+", body["error"]["code"])
    assert body["error"]["param"] is None
    answer = error_answer(error)
    assert answer.status_code == error.status_code
    assert (b"content-type", b"application/json") in answer.raw_headers


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = dict(re.findall(r"(?:├─|└─) (\w+) +(\d{3}|the)", errors.__doc__ or ""))
    defined = {
        kind.__name__: kind for kind in tree() if kind.__module__ == errors.__name__ and kind is not CitadelError
    }
    assert set(drawn) == set(defined)
    for name, status in drawn.items():
        assert status == "the" or int(status) == defined[name].status
    for name, kind in defined.items():
        row = next(line for line in (errors.__doc__ or "").splitlines() if f"─ {name} " in line)
        if kind is not BackendRefused:
            assert kind.type in row
            assert kind.default_code in row


@pytest.mark.parametrize(
    ("seconds", "header"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.001, b"2"), (59.5, b"60"), (60, b"60")]
)
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: bytes) -> None:
    for kind in (LimitExceeded, Unavailable):
        assert kind("Wait.", retry_after=seconds).headers() == [(b"retry-after", header)]
    assert Unavailable("Wait.").headers() == []


@pytest.mark.parametrize("milliseconds", [0, 400, 1000, 5300, 5600])
def test_who_gets_no_place_reads_the_wait_that_programs_do(milliseconds: int) -> None:
    error = NoPlace(", and no more may wait.", Estimate(3, milliseconds))
    [(_, header)] = [one for one in error.headers() if one[0] == b"retry-after"]
    assert f"about {header.decode()} s." in error.message


def test_code_and_param_of_the_instance_win() -> None:
    error = json.loads(TooLarge("Big.", code="own", param="file").body())["error"]
    assert (error["code"], error["param"]) == ("own", "file")


def test_who_is_not_known_is_told_how_to_be() -> None:
    assert Unauthenticated("Who?").headers() == [(b"www-authenticate", b'Bearer realm="citadel"')]
