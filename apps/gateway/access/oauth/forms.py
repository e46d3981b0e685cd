"""What a request to an endpoint of OAuth 2.0 says: its parameters, and the client's credentials, each once.

They come in the body, as a form, and the credentials there or in the header Authorization (RFC 6749, sections 2.3.1
and 3.2): never in the address, which logs and histories keep.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus

from oauthlib.common import urldecode

from apps.gateway.access.oauth.refusals import Refused

KIND = b"application/x-www-form-urlencoded"
LARGEST = 16 * 1024
"""Bytes of a form: twice those of the longest token."""


class Unreadable(Refused):
    """A form of which nothing can be read, nor who sends it."""

    def __init__(self, message: str):
        super().__init__("invalid_request", message)


@dataclass(frozen=True, slots=True)
class Credentials:
    """By what a client says who it is."""

    client_id: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters that have a value, by name; the others count as left out (RFC 6749, section 3.2)."""

    values: Mapping[str, str]

    def credentials(self, authorization: bytes | None) -> Credentials | None:
        """Those of a client; None where it brings none of these, as where it brings a token. Refused where it brings
        several, or what can't be read.
        """
        secret = self.values.get("client_secret")
        if authorization is None:
            return None if secret is None else Credentials(self.values.get("client_id", ""), secret)
        if secret is not None:
            raise _invalid("Prove who you are in one way alone: by the header Authorization, or by client_secret.")
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() != b"basic":
            return None
        found = _basic(rest.strip())
        if self.values.get("client_id", found.client_id) != found.client_id:
            raise _invalid("The client_id is another than that of the header Authorization.")
        return found


def read(body: bytes, query: bytes, content_type: bytes) -> Form:
    """The form that a request brings; Refused where it is none, or says a thing twice, Unreadable where it can't be
    known what it says.
    """
    if query:
        raise _invalid("Parameters come in the body, and none in the address.")
    if content_type.partition(b";")[0].strip().lower() != KIND:
        raise _invalid(f"The body must be a form: send content-type: {KIND.decode()}.")
    if len(body) > LARGEST:
        raise Unreadable(f"The form is larger than {LARGEST} bytes.")
    try:
        told = urldecode(body.decode("ascii"))
    except ValueError:  # of which UnicodeDecodeError is one
        raise Unreadable("The body is no form: what is beyond letters and digits must be percent-encoded.") from None
    names = [name for name, _ in told]
    if len(set(names)) < len(names):
        raise _invalid("A parameter stands there more than once.")
    return Form({name: value for name, value in told if value})


def _basic(encoded: bytes) -> Credentials:
    """What HTTP Basic carries (RFC 7617), each half of it encoded as in a form."""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    name, colon, secret = text.partition(":")
    if not colon:
        raise Refused("invalid_client", "The header Authorization can't be read as Basic.", status=401)
    return Credentials(unquote_plus(name), unquote_plus(secret))


def _invalid(message: str) -> Refused:
    return Refused("invalid_request", message)
