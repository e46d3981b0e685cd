"""From where a request comes, as far as proxies that are trusted say so."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel.client_address import MOST_STEPS, Proxies

PROXIES = Proxies(["10.0.0.0/8"])


def client(peer: str | None, said: str | None, proxies: Proxies = PROXIES) -> str | None:
    scope = {"client": (peer, 1234) if peer else None}
    found = proxies.client(scope, {b"x-forwarded-for": said.encode("latin-1")} if said is not None else {})
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("peer", "said", "meant"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "192.0.2.1", "203.0.113.9"),  # nobody trusts who says it
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.1", "192.0.2.1"),  # what the client wrote itself
        ("10.0.0.1", "192.0.2.1, 10.2.3.4", "192.0.2.1"),  # two proxies
        ("10.0.0.1", "10.9.9.9, 10.2.3.4", "10.9.9.9"),
        ("10.0.0.1", "192.0.2.1, unknown", None),  # who knows nobody lets nobody in
        ("10.0.0.1", "192.0.2.1:5555", "192.0.2.1"),
        ("10.0.0.1", "[2001:db8::9]:443", "2001:db8::9"),
        ("10.0.0.1", "192.0.2.1, 2002:a00:1::5", "2002:a00:1::5"),  # 6to4 of a trusted one is none
        ("2002:a00:1::5", "192.0.2.1", "2002:a00:1::5"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("10.0.0.1", "192.0.2.1\xff", None),
        (None, "192.0.2.1", None),
        ("not an address", "192.0.2.1", None),
    ],
)
def test_whom_a_trusted_proxy_names(peer: str | None, said: str | None, meant: str | None) -> None:
    assert client(peer, said) == meant


def test_nobody_is_trusted_unless_said() -> None:
    assert client("127.0.0.1", "192.0.2.1", Proxies(())) == "127.0.0.1"


def test_a_long_list_is_not_walked_for_ever() -> None:
    assert client("10.0.0.1", "192.0.2.1," + "10.0.0.2," * MOST_STEPS + "10.0.0.3") == "10.0.0.2"


@given(
    st.lists(st.ip_addresses(v=4).map(str), max_size=6),
    st.ip_addresses(v=4).filter(lambda address: address not in ip_network("10.0.0.0/8")).map(str),
)
def test_what_stands_before_the_first_stranger_changes_nothing(made_up: list[str], stranger: str) -> None:
    assert client("10.0.0.1", ", ".join([*made_up, stranger, "10.0.0.7"])) == stranger


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [("10.0.0.1", True), ("::ffff:10.0.0.1", True), ("192.0.2.1", False), ("64:ff9b::a00:1", False), (None, False)],
)
def test_whose_word_is_taken_is_said_by_the_connection_alone(peer: str | None, trusted: bool) -> None:
    scope = {"client": (peer, 1) if peer else None}
    assert PROXIES.is_trusted(scope) is trusted
    assert Proxies(()).is_trusted(scope) is False
