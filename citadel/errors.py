"""The one error tree. Each class owns its status, its OpenAI type and code, and its headers.

    CitadelError                      500  server_error           internal_error
     ├─ BadRequest                    400  invalid_request_error  invalid_value (or the rule that was broken)
     ├─ Unauthenticated               401  invalid_request_error  invalid_api_key
     ├─ Forbidden                     403  permission_error       forbidden
     ├─ NotFound                      404  invalid_request_error  not_found, model_not_found
     │   └─ Withheld                  404  invalid_request_error  not_found, model_not_found
     ├─ MethodNotAllowed              405  invalid_request_error  method_not_allowed
     ├─ TooSlow                       408  invalid_request_error  request_timeout
     ├─ Conflict                      409  invalid_request_error  conflict
     ├─ TooLarge                      413  invalid_request_error  request_too_large
     ├─ UnsupportedCoding             415  invalid_request_error  unsupported_content_encoding
     │   └─ UnsupportedTransfer       501  invalid_request_error  unsupported_transfer_encoding
     ├─ LimitExceeded                 429  rate_limit_error       rate_limit_exceeded
     ├─ HeadersTooLarge               431  invalid_request_error  headers_too_large
     ├─ BackendFailed                 502  upstream_error         upstream_failed
     ├─ Unavailable                   503  server_error           unavailable, no_server_available, auth_unavailable
     │   ├─ Crowded                   503  server_error           server_full
     │   └─ Draining                  503  server_error           server_draining
     ├─ BackendTimeout                504  upstream_error         upstream_timeout
     ├─ LoopDetected                  508  invalid_request_error  loop_detected
     └─ BackendRefused                the 4xx that a server blames on the request, told to the client who caused it

Messages are for the person who reads them and hold no stack, path, host or key.
"""

from typing import ClassVar

import msgspec


class CitadelError(Exception):
    """What a client gets instead of an answer. `message` says what is wrong and what to do; `param` names the field."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        whose: str = "",
    ):
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after
        self.whose = whose
        """Whose request it was, by a key's public id or a person's name: for the security log alone."""
        self.way: list[tuple[bytes, bytes]] = []
        """Headers that tell of the request's way, as far as it got."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""
        return self.status

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that belong to the error: `retry-after` in whole seconds, at least one."""
        if self.retry_after is None:
            return []
        return [(b"retry-after", b"%d" % max(1, -int(-self.retry_after // 1)))]

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})


class BadRequest(CitadelError):
    """The request breaks the schema or a bound; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class Unauthenticated(CitadelError):
    """No credential, or one that proves nothing."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Says how to authenticate (RFC 9110, 11.6.1)."""
        return [(b"www-authenticate", b'Bearer realm="citadel"')]


class Forbidden(CitadelError):
    """The caller is known and may not do this."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(CitadelError):
    """No such thing, or none that this caller may see."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class Withheld(NotFound):
    """What this caller may not see: whether it is there is neither told nor looked at."""


class MethodNotAllowed(CitadelError):
    """The address exists, the method doesn't; `allow` names those that do."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str = ""):
        super().__init__(message)
        self.allow = allow

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Says what is allowed (RFC 9110, 15.5.6)."""
        return [(b"allow", self.allow.encode())]


class TooSlow(CitadelError):
    """The client took too long to send its request."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class Conflict(CitadelError):
    """What is asked for goes against how things are, such as another's claim."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class TooLarge(CitadelError):
    """The body is over the limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedCoding(CitadelError):
    """The body is packed in a way that is not unpacked here."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_content_encoding"


class UnsupportedTransfer(UnsupportedCoding):
    """The body is on its way in another form than in chunks."""

    status = 501
    default_code = "unsupported_transfer_encoding"


class LimitExceeded(CitadelError):
    """A rate or concurrency limit; `retry_after` says when it will let one through."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class HeadersTooLarge(CitadelError):
    """The request's line and headers, or what else isn't its body, are over the limit."""

    status = 431
    type = "invalid_request_error"
    default_code = "headers_too_large"

    def __init__(self, largest: int):
        super().__init__(f"The request's address and headers are larger than {largest} bytes.")


class BackendFailed(CitadelError):
    """The servers tried for this request did not give a usable answer."""

    status = 502
    type = "upstream_error"
    default_code = "upstream_failed"


class Unavailable(CitadelError):
    """Nothing can serve this now; `retry_after` says when to come back."""

    status = 503
    default_code = "unavailable"


class Crowded(Unavailable):
    """The worker holds as much of others as it may, and takes no more for the moment."""

    default_code = "server_full"


class Draining(Unavailable):
    """The worker ends, and the request has had all the time that there was."""

    default_code = "server_draining"

    def __init__(self) -> None:
        super().__init__("This server was stopped before the answer was whole; another one takes over.", retry_after=1)


class BackendTimeout(CitadelError):
    """The servers tried for this request took too long."""

    status = 504
    type = "upstream_error"
    default_code = "upstream_timeout"


class LoopDetected(CitadelError):
    """The request has passed this Citadel before."""

    status = 508
    type = "invalid_request_error"
    default_code = "loop_detected"


class BackendRefused(CitadelError):
    """What a server blames on the request: the client's own fault, handed on with the server's words."""

    type = "invalid_request_error"
    default_code = "invalid_value"

    def __init__(self, message: str, *, status: int, code: str | None = None, param: str | None = None):
        super().__init__(message, code=code, param=param)
        self._status = status

    @property
    def status_code(self) -> int:
        """A 4xx: what the server's answer means here, which may have had another."""
        return self._status
