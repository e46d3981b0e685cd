"""Cookies: what is read of them, and what is kept from Python's own reader."""

import string

import pytest
from django.http import parse_cookie
from hypothesis import given
from hypothesis import strategies as st

from citadel.cookies import LONGEST, MOST_ESCAPES, harmless, value_of

NAMES = st.sampled_from(["sessionid", "csrftoken", "messages", "other"])
PLAIN = st.text(string.ascii_letters + string.digits + ":-_.", max_size=40)


@given(st.lists(st.tuples(NAMES, PLAIN)), st.sampled_from([";", "; "]))
def test_plain_cookies_are_read_as_django_reads_them(cookies: list[tuple[str, str]], between: str) -> None:
    header = between.join([f"{name}={value}" for name, value in cookies]).encode()
    assert harmless(header) == header
    for name in ("sessionid", "csrftoken", "messages", "other"):
        assert value_of(header, name) == parse_cookie(header.decode()).get(name, "")


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (b"", b""),
        (b"a=1; b=" + b"x" * LONGEST + b"; c=3", b"a=1; c=3"),
        (b'm="\\054\\""; a=1', b'm="\\054\\""; a=1'),
        (b'm="' + b"\\" * MOST_ESCAPES + b'"', b'm="' + b"\\" * MOST_ESCAPES + b'"'),
        (b"a=1;m=" + b"\\" * (MOST_ESCAPES + 1) + b";b=2", b"a=1;b=2"),
        (b";".join([b"m=" + b"\\" * 100] * 9), b";".join([b"m=" + b"\\" * 100] * 2)),
        (b"\xff=\xff; ;=;a", b"\xff=\xff; ;=;a"),
    ],
)
def test_what_no_browser_sends_is_left_out(header: bytes, kept: bytes) -> None:
    assert harmless(header) == kept
