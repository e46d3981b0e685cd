"""Client certificates, and how each proxy writes one into a header."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding


@cache
def certificate(name: str = "client", *, begins: float = -1, ends: float = 1) -> bytes:
    """In DER; good from and to so many days from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
    )
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def rfc9440(der: bytes) -> str:
    return f":{base64.b64encode(der).decode()}:"


def nginx(der: bytes) -> str:
    return quote(pem(der), safe="")


def envoy(der: bytes) -> str:
    return f'By=spiffe://a/b;Hash={fingerprint(der)};Cert="{nginx(der)}";Subject="CN=a\\",b;O=c";URI=;DNS=a;DNS=b'
