"""Who has shown a client certificate to a trusted proxy: the holder of the key that it is tied to by its fingerprint.

The proxy has verified that the client has the certificate's private key; which certificates count for whom is said here
alone. What stands in the header counts for nothing from anybody but a trusted proxy. A browser shows a certificate for
whatever page asks it to, so what browsers send is not taken.
"""

import hashlib
import time
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography import x509

from apps.gateway.access.certificates.forms import FORMS
from apps.gateway.access.keys.table import KeyTable
from citadel.caller import Caller
from citadel.client_address import Proxies
from citadel.errors import Forbidden, Unauthenticated
from citadel.sections import Config

LONGEST = 16 * 1024
"""Bytes of the header."""
OF_BROWSERS = (b"origin", b"sec-fetch-site")


def is_a_browsers(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sends them."""
    return any(name in headers for name in OF_BROWSERS)


class Certificate(NamedTuple):
    """What is of use here of a certificate; times in seconds since the epoch."""

    fingerprint: str
    begins: float
    ends: float


class Certificates:
    """This worker's view of them."""

    def __init__(self, config: Config, keys: KeyTable, proxies: Proxies):
        self._header = config.certificates.header.encode() if config.certificates.header else None
        self._form = config.certificates.form
        self._keys = keys
        self._proxies = proxies

    def presented(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
        """What a trusted proxy says of the client's certificate; None where it says nothing, or isn't trusted."""
        value = headers.get(self._header) if self._header else None
        return value if value and self._proxies.is_trusted(scope) else None

    async def caller(self, value: bytes, headers: Mapping[bytes, bytes]) -> Caller:
        """Whose certificate that is; Unauthenticated where it is nobody's, Forbidden from a browser, or Unavailable."""
        if is_a_browsers(headers):
            raise Forbidden("A client certificate holds for programs, not for browsers.", code="foreign_origin")
        try:
            found = _certificate(value, self._form)
        except ValueError as error:
            raise _invalid(str(error)) from None
        now = time.time()
        if not found.begins <= now < found.ends:
            raise _invalid("it is not valid yet" if now < found.begins else "it has expired")
        caller = await self._keys.certified(found.fingerprint)
        if caller is None:
            raise _invalid(f"no key in force is tied to it, or several are (SHA-256 {found.fingerprint})")
        return caller


@lru_cache(maxsize=512)
def _certificate(value: bytes, form: str) -> Certificate:
    """The certificate in a header; ValueError where there isn't one."""
    if len(value) > LONGEST:
        raise ValueError(f"the header is longer than {LONGEST} bytes")
    der = FORMS[form](value)
    try:
        parsed = x509.load_der_x509_certificate(der)
        begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    except (ValueError, x509.InvalidVersion):
        raise ValueError("what the header holds is no certificate") from None
    return Certificate(hashlib.sha256(der).hexdigest(), begins.timestamp(), ends.timestamp())


def _invalid(reason: str) -> Unauthenticated:
    return Unauthenticated(f"The client certificate is not accepted: {reason}.", code="invalid_certificate")
