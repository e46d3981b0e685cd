"""What proves a key's holder beside the key's secret, as people write it: certificates and public keys. Pure."""

import base64
import binascii
import re

ED25519_HEAD = bytes.fromhex("302a300506032b6570032100")
"""How an Ed25519 public key begins in DER (RFC 8410, 4); 32 bytes follow."""
FINGERPRINT = (
    r"^[ \t\r\n]*(?:[Ss][Hh][Aa]256 [Ff]ingerprint=)?"
    r"((?:[0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}|[0-9A-Fa-f]{64})[ \t\r\n]*$"
)
"""A certificate's SHA-256 fingerprint, also as OpenSSL prints it. This and the next stand in the API's description."""
PUBLIC_KEY = (
    r"^[ \t\r\n]*(?:-----BEGIN PUBLIC KEY-----[ \t\r\n]*)?(MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=)"
    r"[ \t\r\n]*(?:-----END PUBLIC KEY-----[ \t\r\n]*)?$"
)
"""An Ed25519 public key in DER, which always begins so, and base64; in PEM, or without its first and last line."""


def plain_fingerprint(text: str) -> str:
    """A certificate's SHA-256 fingerprint in 64 hexadecimal digits, also from how OpenSSL prints it; ValueError."""
    found = re.fullmatch(FINGERPRINT, text)
    if found is None:
        raise ValueError("no SHA-256 fingerprint: 64 hexadecimal digits, as by openssl x509 -fingerprint -sha256")
    return found[1].replace(":", "").lower()


def plain_public_key(text: str) -> str:
    """An Ed25519 public key in DER and base64, also out of PEM; ValueError."""
    found = re.fullmatch(PUBLIC_KEY, text)
    if found is None or public_bytes(found[1]) is None:
        raise ValueError("no Ed25519 public key in PEM, as by openssl pkey -pubout")
    return found[1]


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
