"""What proves a key's holder beside the key's secret, as people write it: certificates and public keys. Pure."""

import base64
import binascii
import re

ED25519_HEAD = bytes.fromhex("302a300506032b6570032100")
"""How an Ed25519 public key begins in DER (RFC 8410, 4); 32 bytes follow."""
_FINGERPRINT = re.compile(r"(?:sha256 fingerprint=)?((?:[0-9a-f]{2}:){31}[0-9a-f]{2}|[0-9a-f]{64})")
_MARKS = re.compile(r"-----(?:BEGIN|END) PUBLIC KEY-----|\s")


def plain_fingerprint(text: str) -> str:
    """A certificate's SHA-256 fingerprint in 64 hexadecimal digits, also from how OpenSSL prints it; ValueError."""
    found = _FINGERPRINT.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("no SHA-256 fingerprint: 64 hexadecimal digits, as by openssl x509 -fingerprint -sha256")
    return found[1].replace(":", "")


def plain_public_key(text: str) -> str:
    """An Ed25519 public key in DER and base64, also out of PEM; ValueError."""
    plain = _MARKS.sub("", text)
    if public_bytes(plain) is None:
        raise ValueError("no Ed25519 public key in PEM, as by openssl pkey -pubout")
    return plain


def public_bytes(plain: object) -> bytes | None:
    """The 32 bytes of a public key; None where there is none."""
    try:
        key = base64.b64decode(plain, validate=True) if isinstance(plain, str) else b""
    except (binascii.Error, ValueError):
        return None
    head, last = key[: len(ED25519_HEAD)], key[len(ED25519_HEAD) :]
    return last if head == ED25519_HEAD and len(last) == 32 else None


def fingerprints(told: object) -> list[str]:
    """Those that the database says; what isn't a list of texts is none."""
    return [text for text in told if isinstance(text, str)] if isinstance(told, list) else []
