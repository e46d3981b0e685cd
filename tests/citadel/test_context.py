"""Request ids: a sane one is the client's, any other is replaced."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from citadel.context import choose_request_id

OURS = re.compile(r"req_[0-9a-f]{24}")


@given(st.from_regex(rb"[A-Za-z0-9._:/+=-]{1,128}", fullmatch=True))
def test_a_sane_id_is_kept(offered: bytes) -> None:
    assert choose_request_id(offered) == offered.decode()


@given(st.binary(max_size=200))
@example(b"")
@example(b"a" * 129)
@example(b"abcdefgh\n")
@example(b"abc,defgh")
@example("abcdefgh\u00e9".encode())
def test_any_other_is_replaced_by_a_new_one(offered: bytes) -> None:
    chosen = choose_request_id(offered)
    assert chosen.encode() == offered or OURS.fullmatch(chosen)
    assert re.fullmatch("[A-Za-z0-9._:/+=-]{1,128}", chosen)


def test_new_ids_differ() -> None:
    assert len({choose_request_id(None) for _ in range(1000)}) == 1000
