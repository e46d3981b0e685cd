"""The signing secret of a key: made anew from what is kept of the key whenever it is needed, and kept nowhere.

Who verifies an HMAC must know what it is made with, and of an API key only a keyed digest is kept. So requests are
signed by another secret, derived from that digest under this installation's: it changes when the key is rotated and is
good as long as the secret that it came with. Neither the database alone nor a signing secret opens any other door.

`cts_` + the key's public id + `_` + 43 characters: as text the key of the HMAC, without decoding anything.
"""

import base64
import hashlib

_PERSON = b"citadel signing"
"""Keeps these apart from whatever else is made with the same secret."""


class SigningSecrets:
    """Makes them, under this installation's secret."""

    def __init__(self, secret: str):
        self._keyed = hashlib.blake2b(key=hashlib.sha512(secret.encode()).digest(), digest_size=32, person=_PERSON)

    def __call__(self, key_id: str, digest: bytes) -> bytes:
        """The signing secret that belongs to a key's secret, by the digest of that."""
        keyed = self._keyed.copy()
        keyed.update(digest)
        return b"cts_%b_%b" % (key_id.encode(), base64.urlsafe_b64encode(keyed.digest()).rstrip(b"="))
