"""API keys: their shape, their checksum, and that nothing altered passes."""

import math
import re

from hypothesis import example, given
from hypothesis import strategies as st

from apps.gateway.access.keys.shape import ALPHABET, SECRET_LENGTH, Digester, checksum, mint, well_formed

KEY = mint()[0]


def test_a_key_has_prefix_public_id_secret_and_checksum() -> None:
    key, key_id = mint()
    assert re.fullmatch(r"ctd_[0-9A-Za-z]{10}_[0-9A-Za-z]{39}", key)
    assert key.split("_")[1] == key_id
    assert well_formed(key.encode())
    assert math.log2(len(ALPHABET) ** SECRET_LENGTH) >= 190


def test_no_two_keys_are_alike() -> None:
    keys = {mint() for _ in range(1000)}
    assert len({key for key, _ in keys}) == len({key_id for _, key_id in keys}) == 1000


@given(st.integers(0, len(KEY) - 1), st.sampled_from(ALPHABET))
def test_one_other_character_anywhere_is_noticed(place: int, other: str) -> None:
    altered = KEY[:place] + other + KEY[place + 1 :]
    assert well_formed(altered.encode()) is (altered == KEY)


@given(st.integers(4, len(KEY) - 2))
def test_two_characters_that_change_places_are_noticed(place: int) -> None:
    swapped = KEY[:place] + KEY[place + 1] + KEY[place] + KEY[place + 2 :]
    assert well_formed(swapped.encode()) is (swapped == KEY)


@given(st.binary(max_size=80) | st.from_regex(rb"ctd_[0-9A-Za-z]{10}_[0-9A-Za-z]{39}", fullmatch=True))
@example(b"")
@example(KEY.encode() + b"\n")
@example(b" " + KEY.encode())
@example(KEY.upper().encode())
@example(KEY.encode()[:-1])
def test_whatever_comes_is_judged_and_noise_is_refused(noise: bytes) -> None:
    assert well_formed(noise) is False or checksum(noise[:-6]) == noise[-6:]


@given(st.binary(max_size=100))
def test_a_checksum_is_six_characters_and_depends_on_the_bytes_alone(body: bytes) -> None:
    assert re.fullmatch(rb"[0-9A-Za-z]{6}", checksum(body))
    assert checksum(body) == checksum(bytes(body))


def test_what_is_kept_is_a_keyed_digest() -> None:
    digest = Digester("one")
    assert digest(b"key") == Digester("one")(b"key")
    assert len({digest(b"key"), digest(b"kez"), Digester("other")(b"key")}) == 3
    assert KEY.encode() not in digest(KEY.encode())
