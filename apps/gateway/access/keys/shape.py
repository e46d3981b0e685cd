"""What an API key looks like, and what is kept of it.

`ctd_` + ten characters of public id + `_` + 33 of secret (196 bits) + six of checksum. The checksum is verified before
anything is looked up, so that noise costs nothing. What is looked up is a keyed BLAKE2b (RFC 7693) of the whole key
under this installation's secret: a stolen table opens no door, and a look-up by digest takes the same time whatever the
stranger sends.
"""

import hashlib
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_letters
ID_LENGTH, SECRET_LENGTH, CHECKSUM_LENGTH = 10, 33, 6
_SHAPE = re.compile(rb"ctd_[0-9A-Za-z]{%d}_[0-9A-Za-z]{%d}" % (ID_LENGTH, SECRET_LENGTH + CHECKSUM_LENGTH))

_PAIRS = tuple((first + second).encode() for first in ALPHABET for second in ALPHABET)
_PERSON = b"citadel api key"
"""Keeps these digests apart from whatever else is made with the same secret."""


def mint(key_id: str = "") -> tuple[str, str]:
    """A new key and its public id, which is `key_id` where one is given."""
    key_id = key_id or _random(ID_LENGTH)
    body = f"ctd_{key_id}_{_random(SECRET_LENGTH)}"
    return body + checksum(body.encode()).decode(), key_id


def id_of(key: str) -> str:
    """The public id of a key."""
    return key.split("_")[1]


def is_id(text: str) -> bool:
    """Whether it has the shape of a key's public id."""
    return len(text) == ID_LENGTH and text.isascii() and text.isalnum()


def well_formed(key: bytes) -> bool:
    """Whether a key has the shape and the checksum of one of ours."""
    return _SHAPE.fullmatch(key) is not None and key.endswith(checksum(key[:-CHECKSUM_LENGTH]))


def checksum(body: bytes) -> bytes:
    """CRC-32 in six characters of base 62."""
    rest, low = divmod(zlib.crc32(body), len(_PAIRS))
    high, middle = divmod(rest, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


class Digester:
    """Makes what is kept of a key, under this installation's secret."""

    def __init__(self, secret: str):
        self._keyed = hashlib.blake2b(key=hashlib.sha512(secret.encode()).digest(), digest_size=32, person=_PERSON)

    def __call__(self, key: bytes) -> bytes:
        """32 bytes."""
        keyed = self._keyed.copy()
        keyed.update(key)
        return keyed.digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
