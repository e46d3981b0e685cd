"""What is read out of a signed request: RFC 9421's own examples, another implementation, and whatever noise comes."""

import base64
import hashlib
import hmac
import string
from contextlib import suppress
from typing import Any

import http_message_signatures as other
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import example, given
from hypothesis import strategies as st

from apps.gateway.access.signatures import digests, messages, simple
from apps.gateway.access.signatures.secret import SigningSecrets
from apps.gateway.access.signatures.signed import Message, Signed, received
from apps.gateway.access.structured import byte_sequence, byte_sequences
from citadel.errors import Unauthenticated
from tests.gateway.access import signing

SECRET = "cts_AbCdEfGhIj_" + "s" * 43
TARGET = "/v1/chat/completions?a=1&b=%20"
URL = f"http://citadel.example:8002{TARGET}"
BODY = b'{"model": "m"}'


def came(headers: dict[str, str], body: bytes = BODY, method: str = "POST", public_url: str | None = None) -> Message:
    """The request as Citadel gets it."""
    path, _, query = TARGET.partition("?")
    scope = {"scheme": "http", "method": method, "raw_path": path.encode(), "query_string": query.encode()}
    raw = {b"host": b"citadel.example:8002", **{name.encode(): text.encode() for name, text in headers.items()}}
    return received(scope, raw, body, public_url)


def is_signed(signed: Signed, body: bytes = BODY, secret: str = SECRET) -> bool:
    base = signed.base if signed.digests is not None else signed.base + hashlib.sha256(body).hexdigest().encode()
    return hmac.digest(secret.encode(), base, "sha256") == signed.signature


# RFC 9421, appendix B: the request, and what it is signed with.

EXAMPLE = Message(
    b"POST",
    b"https",
    b"example.com",
    b"/foo",
    b"param=Value&Pet=dog",
    {
        b"host": b"example.com",
        b"date": b"Tue, 20 Apr 2021 02:07:55 GMT",
        b"content-type": b"application/json",
        b"content-length": b"18",
    },
    b'{"hello": "world"}',
)
SHARED_SECRET = base64.b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
PUBLIC_KEY = base64.b64decode("MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=")


def test_the_standard_s_example_of_a_shared_secret() -> None:
    """B.2.5."""
    base = messages.signature_base(
        EXAMPLE,
        [b"date", b"@authority", b"content-type"],
        [(b"created", b"1618884473"), (b"keyid", b'"test-shared-secret"')],
    )
    made = hmac.digest(SHARED_SECRET, base, "sha256")
    assert base64.b64encode(made) == b"pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


def test_the_standard_s_example_of_a_public_key() -> None:
    """B.2.6."""
    base = messages.signature_base(
        EXAMPLE,
        [b"date", b"@method", b"@path", b"@authority", b"content-type", b"content-length"],
        [(b"created", b"1618884473"), (b"keyid", b'"test-key-ed25519"')],
    )
    signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    load_der_public_key(PUBLIC_KEY).verify(base64.b64decode(signature), base)  # type: ignore[union-attr, call-arg]


DERIVED = ["@method", "@target-uri", "@authority", "@scheme", "@request-target", "@path", "@query"]


class Keys(other.HTTPSignatureKeyResolver):
    def resolve_private_key(self, key_id: str) -> bytes:
        return SECRET.encode()

    resolve_public_key = resolve_private_key


class Sent:
    """A request, as the other implementation wants it."""

    def __init__(self, headers: dict[str, str]):
        self.method, self.url, self.headers = "POST", URL, {"Host": "citadel.example:8002", **headers}


@given(
    st.lists(st.sampled_from([*DERIVED, "content-type", "x-more"]), unique=True),
    st.text(string.ascii_letters + string.digits + " !#$%&'*+-.^_`|~=/\"\\", min_size=16, max_size=128),
    st.booleans(),
)
def test_what_another_implementation_signs_is_read_as_it_was_meant(more: list[str], nonce: str, tag: bool) -> None:
    sent = Sent({"Content-Type": "application/json", "X-More": "a,  b\tc"})
    covered = list(dict.fromkeys(["@method", "@target-uri", *more]))
    signer = other.HTTPMessageSigner(signature_algorithm=other.algorithms.HMAC_SHA256, key_resolver=Keys())
    signer.sign(
        sent, key_id="AbCdEfGhIj", nonce=nonce, tag="t" if tag else None, covered_component_ids=covered, body=BODY
    )
    headers = {name.lower(): value for name, value in sent.headers.items()}
    if len(headers["signature-input"].split('nonce="')[1].split('"')[0]) > 128:
        return  # with its escapes
    signed = messages.read(came(headers))
    assert is_signed(signed)
    assert signed.key_id == "AbCdEfGhIj"
    assert signed.digests == {"sha-256": hashlib.sha256(BODY).digest()}


def test_spaces_that_may_be_there_change_nothing() -> None:
    headers = signing.message(SECRET, "POST", URL, BODY)
    text = headers["signature-input"]
    headers["signature-input"] = f" {text} ".replace('("', '(  "').replace('" "', '"   "').replace(";", ";  ")
    assert is_signed(messages.read(came(headers)))


@pytest.mark.parametrize(
    ("host", "public_url", "meant"),
    [
        ("citadel.example:8002", None, "http://citadel.example:8002"),
        ("Citadel.EXAMPLE:80", None, "http://citadel.example"),
        ("citadel.example", "https://citadel.example", "https://citadel.example"),
        ("citadel.example:443", "https://citadel.example", "https://citadel.example"),
        ("citadel.example:8443", "https://citadel.example:8443", "https://citadel.example:8443"),
        ("10.0.0.1:8002", "https://citadel.example", "http://10.0.0.1:8002"),
        ("citadel.example.evil", "https://citadel.example", "http://citadel.example.evil"),
    ],
)
def test_where_a_request_goes_to_is_said_as_its_client_says_it(host: str, public_url: str | None, meant: str) -> None:
    scope = {"scheme": "http", "method": "GET", "raw_path": b"/v1/models", "query_string": b""}
    message = received(scope, {b"host": host.encode()}, b"", public_url)
    [line, _] = messages.signature_base(message, [b"@target-uri"], []).split(b"\n")
    assert line == f'"@target-uri": {meant}/v1/models'.encode()


def refusal(headers: dict[str, str], body: bytes = BODY) -> str:
    reader = simple if "x-citadel-key" in headers else messages
    with pytest.raises(Unauthenticated) as caught:
        reader.read(came(headers, body))
    assert SECRET not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"covered": ("@target-uri", "content-digest")}, "cover '@method'"),
        ({"covered": ("@method", "content-digest")}, "'@target-uri'"),
        ({"covered": ("@method", "@path", "content-digest")}, "'@path' and '@query'"),
        ({"covered": ("@method", "@target-uri")}, "'content-digest'"),
        ({"covered": (*signing.COVERED, "@method")}, "twice"),
        ({"covered": (*signing.COVERED, "@status")}, "'@status'"),
        ({"covered": (*signing.COVERED, "x-absent")}, "'x-absent'"),
        ({"covered": (*signing.COVERED, "Date")}, "one signature like"),
        ({"covered": (*signing.COVERED, '@query-param";name="a')}, "one signature like"),
        ({"covered": ("@method", "@target-uri", *(f"x-{number}" for number in range(60)))}, "more than 50"),
        ({"created": None}, "say 'created'"),
        ({"nonce": None}, "say 'nonce'"),
        ({"keyid": None}, "say 'keyid'"),
        ({"nonce": "short"}, "16 to 128"),
        ({"nonce": "x" * 129}, "16 to 128"),
        ({"created": "1700000000"}, "'created' must be a whole number"),
        ({"keyid": 5}, "'keyid' must be a text"),
        ({"alg": "rsa-v1_5-sha256"}, "'alg' must be"),
        ({"alg": "none"}, "'alg' must be"),
        ({"evil": "x"}, "'evil' is not known"),
        ({"keyid": "x" * 5000}, "one signature like"),
        ({"headers": {"content-digest": "md5=:AAAA:"}}, "neither sha-256 nor sha-512"),
        ({"headers": {"content-digest": "sha-256=AAAA"}}, "not like sha-256="),
        ({"headers": {"content-digest": signing.digest(BODY) + ", " + signing.digest(b"x")}}, "not like sha-256="),
    ],
)
def test_what_is_wrong_is_told(changed: dict[str, Any], told: str) -> None:
    assert told in refusal(signing.message(SECRET, "POST", URL, BODY, **changed))


@pytest.mark.parametrize(
    ("header", "bent", "told"),
    [
        ("signature-input", "", "signature-input is missing"),
        ("signature-input", "sig1", "one signature like"),
        ("signature-input", "sig1=()", "cover '@method'"),
        ("signature-input", "GOOD, sig2=()", "one signature like"),
        ("signature-input", 'GOOD;nonce="0123456789abcdef"', "'nonce' twice"),
        ("signature-input", "GOOD;created=1", "'created' twice"),
        ("signature-input", "GOOD;more", "one signature like"),
        ("signature-input", "GOOD;expires=1.5", "one signature like"),
        ("signature-input", "GOOD;expires=9999999999999999", "one signature like"),
        ("signature-input", "GOOD;tag='; DROP TABLE gateway_key; --", "one signature like"),
        ("signature-input", 'GOOD;tag="\0"', "one signature like"),
        ("signature-input", 'GOOD;tag="\u00e9"', "one signature like"),
        ("signature-input", "x" * 100_000, "one signature like"),
        ("signature", "", "header signature is missing"),
        ("signature", "sig2=:AAAA:", "label"),
        ("signature", "sig1=AAAA", "label"),
        ("signature", "sig1=:AAAA:, sig2=:AAAA:", "label"),
        ("signature", "sig1=:AAAA:, sig1=:AAAA:", "label"),
        ("signature", "sig1=:A:", "label"),
        ("signature", "\0", "label"),
        ("signature", "sig1=:" + "A" * 100_000 + "\u00e9:", "label"),
    ],
)
def test_a_header_that_is_none_is_told(header: str, bent: str, told: str) -> None:
    headers = signing.message(SECRET, "POST", URL, BODY)
    headers[header] = bent.replace("GOOD", headers[header])
    assert told in refusal(headers)


@pytest.mark.parametrize("header", ["x-citadel-timestamp", "x-citadel-nonce", "x-citadel-signature", "x-citadel-key"])
@pytest.mark.parametrize(
    "bent",
    ["", "x" * 100_000, "\0", "\u00e9" * 16, "' OR 1=1; --", "GOOD, GOOD", "GOOD\n", " GOOD", "-5", "\u0661" * 16],
)
def test_so_is_one_of_the_simple_form(header: str, bent: str) -> None:
    headers = signing.simple(SECRET, "POST", TARGET, BODY)
    headers[header] = bent.replace("GOOD", headers[header])
    with pytest.raises(Unauthenticated, match=f"{header} must be"):
        simple.read(came(headers))
    del headers[header]
    with pytest.raises(Unauthenticated, match=f"{header} is missing"):
        simple.read(came(headers))


@pytest.mark.parametrize("form", [signing.simple, signing.message])
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "DELETE"])
def test_each_method_is_signed_as_it_is_sent(form: Any, method: str) -> None:
    headers = form(SECRET, method, TARGET if form is signing.simple else URL, BODY)
    reader = simple if form is signing.simple else messages
    assert is_signed(reader.read(came(headers, method=method)))
    assert not is_signed(reader.read(came(headers, method="PUT")))


noise = st.binary(max_size=300) | st.text(string.printable, max_size=300).map(str.encode)
fields = st.dictionaries(
    st.sampled_from([b"signature", b"signature-input", b"content-digest", *(name for name, *_ in simple._RULES)]), noise
)


@given(fields, st.binary(max_size=5))
@example({b"signature-input": b'a=("' + b"a" * 2000}, b"")
@example({b"signature-input": b"a=(" + b" " * 3000 + b"x"}, b"")
@example({b"signature-input": b"a=()" + b";a=1" * 900 + b";"}, b"")
def test_noise_is_refused_and_nothing_else(headers: dict[bytes, bytes], body: bytes) -> None:
    message = Message(b"POST", b"http", b"h", b"/", b"", headers, body)
    for reader in (simple, messages):
        with pytest.raises(Unauthenticated):
            reader.read(message)


@given(st.integers(0, 400), st.sampled_from('abz019"();=:@- '))
def test_one_other_character_of_a_signature_s_input_is_noticed(place: int, character: str) -> None:
    headers = signing.message(SECRET, "POST", URL, BODY, created=1_700_000_000, nonce="n" * 16)
    text = headers["signature-input"]
    place %= len(text)
    headers["signature-input"] = text[:place] + character + text[place + 1 :]
    if headers["signature-input"] == text:
        return
    with suppress(Unauthenticated):
        assert not is_signed(messages.read(came(headers)))


@given(st.binary(max_size=100))
def test_bytes_are_read_as_they_were_written(raw: bytes) -> None:
    written = b":" + base64.b64encode(raw) + b":"
    assert byte_sequence(b" " + written + b"\t") == raw
    assert byte_sequence(written.replace(b"=", b"")) == raw
    assert byte_sequences(b"a=" + written + b" ,b=" + written) == {b"a": raw, b"b": raw}


@given(st.binary(max_size=100))
def test_what_is_no_dictionary_of_bytes_is_none(raw: bytes) -> None:
    found = byte_sequences(raw)
    assert found is None or found


@pytest.mark.parametrize("size", [0, 1, digests.SLICE, digests.SLICE + 1, 3 * digests.SLICE + 7])
async def test_a_large_body_has_the_digest_of_the_whole(size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    assert await digests.digest_of(body[:size], "sha-256") == hashlib.sha256(body[:size]).digest()


def test_a_signing_secret_belongs_to_one_secret_of_one_key_in_one_installation() -> None:
    made = SigningSecrets("one")("AbCdEfGhIj", b"digest")
    assert made == SigningSecrets("one")("AbCdEfGhIj", b"digest")
    assert made.startswith(b"cts_AbCdEfGhIj_")
    assert len(made) == 58
    others = {SigningSecrets("other")("AbCdEfGhIj", b"digest"), SigningSecrets("one")("AbCdEfGhIj", b"digesu"), made}
    assert len(others) == 3
