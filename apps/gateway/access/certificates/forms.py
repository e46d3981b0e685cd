"""How proxies write a client's certificate into a header, each as a function that gives it in DER.

ValueError, with a reason for the operator, where the header isn't one certificate in that form.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

from apps.gateway.access.structured import byte_sequence

_PEM = re.compile(rb"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")
_PAIR = rb'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)'
_PAIRS = re.compile(_PAIR)
_ELEMENT = re.compile(rb"%b(?:;%b)*" % (_PAIR, _PAIR))


def from_rfc9440(value: bytes) -> bytes:
    """Client-Cert (RFC 9440): a Byte Sequence of the certificate in DER."""
    der = byte_sequence(value)
    if not der:
        raise ValueError("the header is not one certificate like :BASE64: (RFC 9440)")
    return der


def from_nginx(value: bytes) -> bytes:
    """What nginx has in $ssl_client_escaped_cert: a certificate in PEM, escaped as in addresses."""
    found = _PEM.fullmatch(unquote_to_bytes(value))
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True) if found else _nothing()
    except binascii.Error:
        return _nothing()


def from_envoy(value: bytes) -> bytes:
    """x-forwarded-client-cert, as Envoy writes it: of its one element the Cert, to which the Hash belongs."""
    if not _ELEMENT.fullmatch(value):
        raise ValueError("the header is not one element; let the proxy replace what it was sent (SANITIZE_SET)")
    pairs = [(name.lower(), content.strip(b'"')) for name, content in _PAIRS.findall(value)]
    names = [name for name, _ in pairs]
    if names.count(b"cert") != 1 or names.count(b"hash") > 1:
        raise ValueError("the header must have one Cert: let the proxy add it (set_current_client_cert_details)")
    said = dict(pairs)
    der = from_nginx(said[b"cert"])
    if said.get(b"hash", b"").lower() not in (b"", hashlib.sha256(der).hexdigest().encode()):
        raise ValueError("the header's Hash is not that of its Cert")
    return der


def _nothing() -> bytes:
    raise ValueError("the header is not one certificate in PEM, escaped as in addresses")


FORMS: Mapping[str, Callable[[bytes], bytes]] = {
    "rfc9440": from_rfc9440,
    "nginx": from_nginx,
    "envoy": from_envoy,
}
"""By the names that `certificates.form` has for them."""
