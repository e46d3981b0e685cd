"""Signatures are those of Standard Webhooks, and nothing else passes for one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.orchestration.webhooks.signing import TOLERANCE, check, headers, secret_of, sign
from citadel.errors import Unauthenticated

# Published by the specification's reference libraries and by its first implementer.
VECTORS = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1649367553,
        b'{"email":"test@example.com","username":"test_user"}',
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ),
]
SECRET, ID, TIME, BODY, SIGNATURE = VECTORS[0]
identifiers = st.text("abcXYZ019_.-", min_size=1, max_size=40)
times = st.integers(0, 2**33)


def carried(message_id: str = ID, timestamp: object = TIME, signature: str = SIGNATURE) -> dict[bytes, bytes]:
    return {
        b"webhook-id": message_id.encode("latin-1"),
        b"webhook-timestamp": str(timestamp).encode(),
        b"webhook-signature": signature.encode(),
    }


def refused(found: dict[bytes, bytes], body: bytes = BODY, now: float = TIME, secret: str = SECRET) -> str:
    with pytest.raises(Unauthenticated) as caught:
        check(secret, found, body, now)
    return caught.value.code


@pytest.mark.parametrize(("secret", "message_id", "timestamp", "body", "signature"), VECTORS)
def test_published_examples(secret: str, message_id: str, timestamp: int, body: bytes, signature: str) -> None:
    assert sign(secret, message_id, timestamp, body) == signature
    assert check(secret, carried(message_id, timestamp, signature), body, timestamp) == message_id


@given(identifiers, times, st.binary(max_size=200), st.text("abcdef", min_size=1))
def test_what_is_signed_is_believed(message_id: str, timestamp: int, body: bytes, salt: str) -> None:
    secrets = [secret_of("installation", salt), secret_of("installation", f"{salt}-old")]
    sent = {name.encode(): value.encode() for name, value in headers(secrets, message_id, timestamp, body).items()}
    for secret in secrets:
        assert check(secret, sent, body, timestamp) == message_id
    assert refused(sent, body, timestamp, secret_of("another", salt)) == "invalid_signature"
    assert refused(sent, body + b" ", timestamp, secrets[0]) == "invalid_signature"
    for name, value in ((b"webhook-id", b"x" + sent[b"webhook-id"]), (b"webhook-timestamp", b"%d" % (timestamp + 1))):
        assert refused({**sent, name: value}, body, timestamp, secrets[0]) == "invalid_signature"


@given(st.floats(-10_000, 10_000))
def test_time_is_off_by_so_much_at_most(off: float) -> None:
    if abs(off) <= TOLERANCE:
        assert check(SECRET, carried(), BODY, TIME + off) == ID
    elif abs(off) > TOLERANCE + 1e-3:
        assert refused(carried(), now=TIME + off) == "clock_skew"


@pytest.mark.parametrize("timestamp", ["", "x", "-1", "1.5", "²", "1" * 13, "0x10"])
def test_a_time_that_is_none(timestamp: str) -> None:
    assert refused(carried(timestamp=timestamp)) == "invalid_signature"


@pytest.mark.parametrize("message_id", ["", "a" * 256, "a\tb", "é"])
def test_an_id_that_is_none(message_id: str) -> None:
    assert refused(carried(message_id)) == "invalid_signature"


@pytest.mark.parametrize("signature", ["", "v1,", "v1", SIGNATURE[3:], f"v1a,{SIGNATURE[3:]}", SIGNATURE.lower()])
def test_a_signature_that_is_none(signature: str) -> None:
    assert refused(carried(signature=signature)) == "invalid_signature"


def test_it_may_be_one_of_several() -> None:
    assert check(SECRET, carried(signature=f"v1a,xyz v1,abc {SIGNATURE}"), BODY, TIME) == ID


def test_secrets_are_long_and_their_own() -> None:
    one, other = secret_of("installation", "a"), secret_of("installation", "b")
    assert one != other
    assert one != secret_of("elsewhere", "a")
    assert len(base64.b64decode(one.removeprefix("whsec_"))) == 32
