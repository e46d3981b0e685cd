"""How proxies write certificates, and how people write fingerprints and public keys."""

import base64
import string
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from apps.gateway.access.certificates.forms import FORMS
from apps.gateway.access.certificates.presented import _certificate
from apps.gateway.access.keys.credentials import (
    fingerprints,
    plain_fingerprint,
    plain_public_key,
    public_bytes,
)
from tests.gateway.access.certificate import certificate, envoy, fingerprint, nginx, pem, rfc9440

WRITTEN: dict[str, Callable[[bytes], str]] = {"rfc9440": rfc9440, "nginx": nginx, "envoy": envoy}
DER, OTHER = certificate(), certificate("other")


@pytest.mark.parametrize("form", FORMS)
def test_a_certificate_is_found_in_each_form(form: str) -> None:
    assert FORMS[form](WRITTEN[form](DER).encode()) == DER
    assert _certificate(WRITTEN[form](DER).encode(), form).fingerprint == fingerprint(DER)


BENT = {
    "rfc9440": [
        lambda: rfc9440(DER) + ", " + rfc9440(OTHER),
        lambda: rfc9440(DER) + ";a=1",
        lambda: base64.b64encode(DER).decode(),
        lambda: ":A:",
        lambda: "::",
    ],
    "nginx": [
        lambda: nginx(DER) + nginx(OTHER),
        lambda: nginx(DER) + ", " + nginx(DER),
        lambda: nginx(DER).replace("CERTIFICATE", "PRIVATE%20KEY"),
        lambda: "-----BEGIN CERTIFICATE-----A-----END CERTIFICATE-----",
        lambda: rfc9440(DER),
    ],
    "envoy": [
        lambda: envoy(DER) + "," + envoy(OTHER),
        lambda: envoy(DER) + f";Cert={nginx(OTHER)}",
        lambda: envoy(DER).replace(fingerprint(DER), fingerprint(OTHER)),
        lambda: f"Hash={fingerprint(DER)}",
        lambda: f"Hash={fingerprint(DER)};Hash={fingerprint(DER)};Cert={nginx(DER)}",
        lambda: envoy(DER)[:-40] + '"',
    ],
}


@pytest.mark.parametrize(("form", "number"), [(form, number) for form in BENT for number in range(len(BENT[form]))])
def test_several_and_malformed_ones_are_none(form: str, number: int) -> None:
    with pytest.raises(ValueError, match="header"):
        _certificate(BENT[form][number]().encode(), form)


@given(
    st.sampled_from(sorted(FORMS)), st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode)
)
def test_noise_is_no_certificate(form: str, noise: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        _certificate(noise, form)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_an_altered_certificate_has_another_fingerprint(place: int, change: int) -> None:
    altered = bytearray(DER)
    altered[place % len(DER)] ^= change
    try:
        found = _certificate(rfc9440(bytes(altered)).encode(), "rfc9440").fingerprint
    except ValueError:
        return
    assert found != fingerprint(DER)


def test_what_follows_a_certificate_makes_it_none() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        _certificate(rfc9440(DER + b"x").encode(), "rfc9440")


@pytest.mark.parametrize(
    "written",
    [
        "ab" * 32,
        "AB" * 32,
        ":".join(["aB"] * 32),
        "SHA256 Fingerprint=" + ":".join(["AB"] * 32),
        f" {'ab' * 32}\n",
    ],
)
def test_a_fingerprint_is_read_as_openssl_writes_it(written: str) -> None:
    assert plain_fingerprint(written) == "ab" * 32


@pytest.mark.parametrize(
    "written", ["", "ab" * 31, "ab" * 33, "zz" * 32, ":".join(["ab"] * 31), "ab:" * 32, "\u0660" * 64]
)
def test_what_is_none_is_told(written: str) -> None:
    with pytest.raises(ValueError, match="SHA-256 fingerprint"):
        plain_fingerprint(written)


def test_a_public_key_is_read_out_of_pem() -> None:
    public = Ed25519PrivateKey.generate().public_key()
    written = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    plain = plain_public_key(written)
    assert plain == plain_public_key(plain) == written.splitlines()[1]
    for other in (f" {written}".replace("\n", "\r\n"), written.replace("\n", " ")):
        assert plain_public_key(other) == plain
    assert public_bytes(plain) == public.public_bytes_raw()


@pytest.mark.parametrize(
    "written",
    [
        "",
        "AAAA",
        "\u00e9",
        "\0",
        pem(DER),
        generate_private_key(SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode(),
        base64.b64encode(bytes(32)).decode(),
        "MCowBQYDK2VwAyEA" + "A" * 42 + "==",
        "MCowBQYDK2VwAyEA" + "A" * 43 + "=" + "A",
    ],
)
def test_what_is_no_public_key_is_told(written: str) -> None:
    with pytest.raises(ValueError, match="Ed25519"):
        plain_public_key(written)


@pytest.mark.parametrize("told", [None, 5, "ab", {"a": 1}, [5, None, ["a"]]])
def test_what_makes_no_sense_in_the_database_proves_nothing(told: object) -> None:
    assert fingerprints(told) == []
    assert public_bytes(told) is None
