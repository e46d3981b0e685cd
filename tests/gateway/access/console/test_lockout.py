"""The counts behind it: for one process, the clock apart."""

import secrets
import time
from collections.abc import Iterator

import pytest
from django.core.cache import cache

from apps.gateway.access.console import lockout
from apps.gateway.access.console.lockout import OF_ACCOUNT, OF_ADDRESS, WINDOW, Locked, attempt


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


def refused(account: str, address: str, device: str | None = None) -> bool:
    try:
        attempt(account, address, device)
    except Locked:
        return True
    return False


def test_right_ones_are_taken_back() -> None:
    for _ in range(3 * OF_ADDRESS):
        attempt("a", "10.0.0.1", None).take_back()
    assert not refused("a", "10.0.0.1")


@pytest.mark.parametrize("spelling", ["ADMIN", " admin ", "\uff41dmin"])
def test_spellings_of_a_name_are_one(spelling: str) -> None:
    assert [refused("admin", f"10.0.0.{n}") for n in range(OF_ACCOUNT)] == [False] * OF_ACCOUNT
    assert refused(spelling, "10.0.1.1")


def test_a_client_has_all_of_its_network_of_ipv6() -> None:
    tried = [refused(secrets.token_hex(4), f"2001:db8::{n:x}") for n in range(OF_ADDRESS + 1)]
    assert tried == [False] * OF_ADDRESS + [True]
    assert not refused("x", "2001:db8:0:1::1")
    assert refused("x", "2001:db8::ffff")


def test_it_says_when_and_is_not_prolonged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    for _ in range(OF_ACCOUNT):
        attempt("a", secrets.token_hex(4), None)
    for passed, said in ((0, "10 minutes"), (WINDOW - 61, "2 minutes"), (WINDOW - 1, "1 minute")):
        now[0] = 1_000_000.0 + passed
        with pytest.raises(Locked, match=f"Try again in {said}\\."):
            attempt("a", secrets.token_hex(4), None)
    now[0] = 1_000_000.0 + WINDOW + 1
    assert not refused("a", "10.0.0.1")


def test_a_count_that_was_taken_back_too_late_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis makes a key of what it is to count down that has ended in this moment: one that would never end."""
    name = lockout._name("account", "a")
    cache.set(name, -1, None)
    attempt("a", "10.0.0.1", None)
    now = [time.time() + WINDOW + 1]
    monkeypatch.setattr("time.time", lambda: now[0])
    assert cache.get(name) is None


def test_what_is_kept_is_of_one_length() -> None:
    assert len(lockout._name("account", "x" * 100_000)) < 64
