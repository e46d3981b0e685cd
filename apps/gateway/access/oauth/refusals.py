"""What an endpoint of OAuth 2.0 says instead of an answer (RFC 6749, section 5.2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from oauthlib.oauth2 import OAuth2Error

from citadel.answer import Headers
from citadel.errors import CitadelError, Forbidden, Unauthenticated

PRAGMA = (b"pragma", b"no-cache")
"""On every answer (RFC 6749, section 5.1), beside the cache-control that all answers have."""
BASIC, BEARER = b'Basic realm="citadel", charset="UTF-8"', b'Bearer realm="citadel"'


class Problem(msgspec.Struct):
    """The body of a refusal: what is wrong, for programs and for people."""

    error: str
    error_description: str


class Refused(CitadelError):
    """A refusal. `error` is one of the words of the RFCs; a client that isn't known is told how to prove who it is."""

    def __init__(
        self, error: str, message: str, *, status: int = 400, retry_after: float | None = None, challenge: bytes = BASIC
    ):
        super().__init__(message, code=error, retry_after=retry_after)
        self._status = status
        self._challenge = challenge

    @property
    def status_code(self) -> int:
        """400, or 401 where it is the client that is not known, or what the cause has."""
        return self._status

    def headers(self) -> Headers:
        """`retry-after`, and what no cache may do with it."""
        challenge = [(b"www-authenticate", self._challenge)] if self._status == 401 else []
        return [*super().headers(), *challenge, PRAGMA]

    def body(self) -> bytes:
        """As the RFC has it, in ASCII without quotation marks and backslashes."""
        told = "".join(sign for sign in self.message if " " <= sign <= "~" and sign not in '"\\')
        return msgspec.json.encode(Problem(self.code, told))


@contextmanager
def in_its_form(challenge: bytes = BASIC) -> Iterator[None]:
    """Whatever goes wrong inside is told as OAuth 2.0 tells it, and the security log hears whose it was."""
    try:
        yield
    except Refused:
        raise
    except OAuth2Error as error:
        word = str(error.error)
        raise Refused(word, error.description or word, status=error.status_code) from None
    except CitadelError as error:
        refused = _refused(error, challenge)
        refused.whose = error.whose
        raise refused from None


def _refused(error: CitadelError, challenge: bytes) -> Refused:
    if isinstance(error, Unauthenticated):
        word = "invalid_client" if challenge == BASIC else "invalid_token"
        return Refused(word, error.message, status=401, challenge=challenge)
    if isinstance(error, Forbidden):
        return Refused("unauthorized_client", error.message)
    word = "temporarily_unavailable" if error.retry_after else "server_error"
    return Refused(word, error.message, status=error.status_code, retry_after=error.retry_after)
