"""What a request to an endpoint of OAuth 2.0 says: read as it was written, or refused."""

import base64
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.access.oauth.forms import KIND, LARGEST, Credentials, Form, read
from apps.gateway.access.oauth.refusals import Refused

FORMS = st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=10)


def basic(client_id: str, secret: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode())


def error_of(refused: pytest.ExceptionInfo[Refused]) -> tuple[int, str | None]:
    return refused.value.status_code, refused.value.code


@given(FORMS)
def test_a_form_is_read_as_it_was_written(values: dict[str, str]) -> None:
    """But for what has no value, which counts as left out."""
    form = read(urlencode(values).encode(), b"", KIND + b"; charset=utf-8")
    assert form.values == {name: value for name, value in values.items() if value}


@given(FORMS.filter(bool), st.data())
def test_what_stands_there_twice_is_refused(values: dict[str, str], data: st.DataObject) -> None:
    pairs = [*values.items(), (data.draw(st.sampled_from(sorted(values))), data.draw(st.text(max_size=5)))]
    with pytest.raises(Refused) as refused:
        read(urlencode(data.draw(st.permutations(pairs))).encode(), b"", KIND)
    assert error_of(refused) == (400, "invalid_request")


@given(st.binary(max_size=200), st.binary(max_size=20), st.just(KIND) | st.binary(max_size=40))
def test_whatever_comes_is_read_or_refused(body: bytes, query: bytes, content_type: bytes) -> None:
    try:
        assert all(read(body, query, content_type).values.values())
    except Refused as refused:
        assert refused.code == "invalid_request"


@given(st.text(max_size=50), st.text(max_size=50))
def test_basic_is_read_as_it_was_written(client_id: str, secret: str) -> None:
    assert Form({}).credentials(basic(client_id, secret)) == Credentials(client_id, secret)


@given(st.binary(max_size=100))
def test_what_is_no_basic_is_no_client(rest: bytes) -> None:
    try:
        found = Form({}).credentials(b"basic " + rest)
    except Refused as refused:
        assert (refused.status_code, refused.code) == (401, "invalid_client")
    else:
        assert isinstance(found, Credentials)


def test_other_schemes_are_for_others() -> None:
    assert Form({}).credentials(b"Bearer ctd_x") is None
    assert Form({}).credentials(None) is None
    assert Form({"client_id": "a", "client_secret": "b"}).credentials(None) == Credentials("a", "b")


@pytest.mark.parametrize(
    ("values", "authorization"),
    [
        ({"client_secret": "s", "client_id": "a"}, basic("a", "s")),
        ({"client_secret": "s"}, b"Bearer ctd_x"),
        ({"client_id": "b"}, basic("a", "s")),
    ],
)
def test_who_proves_it_twice_is_refused(values: dict[str, str], authorization: bytes) -> None:
    with pytest.raises(Refused) as refused:
        Form(values).credentials(authorization)
    assert error_of(refused) == (400, "invalid_request")


def test_a_form_has_an_end() -> None:
    assert read(b"a=" + b"x" * (LARGEST - 2), b"", KIND)
    with pytest.raises(Refused):
        read(b"a=" + b"x" * (LARGEST - 1), b"", KIND)


@given(st.text(max_size=60))
def test_a_refusal_says_what_a_header_and_the_rfc_can_bear(message: str) -> None:
    told = Refused("invalid_request", message).body()
    assert told.isascii()
    assert b"\\" not in told
