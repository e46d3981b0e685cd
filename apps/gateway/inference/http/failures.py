"""What can go wrong with a server, and what it means: the only place that maps it."""

from typing import Any

import aiohttp
import msgspec

from apps.gateway.inference.http.words import PAST_CONTEXT, Words, read_error, scrub
from apps.orchestration.dialects import DIALECTS
from apps.orchestration.fleet import Server
from apps.orchestration.health.evidence import Evidence
from citadel import descriptors
from citadel.errors import (
    BackendFailed,
    BackendRefused,
    BackendTimeout,
    BadRequest,
    CitadelError,
    LimitExceeded,
    LoopDetected,
    NotFound,
    Unavailable,
)

MODEL_GONE = "model_not_found"
"""The reason of a failure where a server does not hold the model, and OpenAI's code for it."""
LOOP = LoopDetected.default_code
"""The same where the server is a Citadel that holds the model by this one alone, and the code by which it says so."""
NOT_HELD = frozenset((MODEL_GONE, LOOP))
NOBODY_THERE = "no_server_there"
OF_ITS_FLEET = frozenset(("no_server_available", "server_unavailable", "queue_full", "queue_timeout", "queue_too_long"))
"""Of a Citadel's 503s those that tell of the servers that it has for one model."""
NO_ENDPOINT = "not_found"
"""The reason of a failure where a server has not got what was asked for, and speaks of no model."""
LACKS = NOT_HELD | {NO_ENDPOINT}
"""A server that says so is well, and another one may do what is asked."""
OF_MODEL = LACKS | {NOBODY_THERE}
"""What is said of a server says nothing of its other models."""
MOVED = "moved"
"""The reason where a request was sent and called back before any answer, because its server was going out."""
CONNECT_TIMEOUT = "connect_timeout"
"""The reason where a connection was not made in time."""
NO_ADDRESS, ADDRESS_REFUSED = "no_address", "address_refused"
"""The same where its name leads nowhere, or where Citadel must not go."""
BAD_CERTIFICATE, TLS_FAILED = "bad_certificate", "tls_failed"
"""The same where the server can't prove who it is, or speaks no TLS that we know."""
UNREACHED = frozenset((CONNECT_TIMEOUT, NO_ADDRESS, ADDRESS_REFUSED, BAD_CERTIFICATE, TLS_FAILED))
"""Of these the network may be the cause, or we: a refusal is the server's own word."""
DAMAGING = frozenset(("disconnected", "status_500", "status_502"))
"""Reasons of failures that a request may bring about, beside answers that make no sense."""
TOO_LATE = frozenset(("timeout", "status_408", "status_504"))
"""Reasons that tell of too long a time, which a request may take too; or its server hangs."""
MOST_DIGITS = 6
"""Of a server's retry-after that is taken seriously."""


PAUSE, LONGEST_PAUSE = 2.0, 30.0
"""Seconds for which a server that is busy is asked last: where it does not say for how long, and at most."""
GONE_FOR = 30.0
"""Seconds for which a server is asked last for a model, or an endpoint, that it says it has not got."""


class Failure(Exception):
    """One attempt on one server did not give an answer.

    `reason` is for the record, `error` for the client if no other server does better. `refused`: nothing was sent.
    `blamed`: it counts against the server. `pause`: seconds for which that should be asked after all others.
    `counted`: all workers count it among those in a row (`asking.py` sees to that, too).
    `late`: it took too long, on a server that had not kept anybody waiting in vain before (`asking.py` looks at that).
    """

    def __init__(
        self, reason: str, error: CitadelError, *, refused: bool = False, blamed: bool = True, pause: float = 0.0
    ):
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.refused = refused
        self.blamed = blamed
        self.pause = pause
        self.late = self.overlong = reason in TOO_LATE
        self.counted = False

    @property
    def damaging(self) -> bool:
        """Whether it is of the kind that a request itself may bring about: not so 503, which tells of all of them."""
        return self.reason in DAMAGING or self.reason.startswith("malformed")

    @property
    def suspicious(self) -> bool:
        """Whether a request may be to blame: it did damage, or took too long."""
        return self.damaging or self.overlong

    @property
    def moved(self) -> bool:
        """Whether the request was called back: the server that has it is not to work for it any more."""
        return self.reason == MOVED

    @property
    def evidence(self) -> Evidence:
        """What it says of the server; one that tells of an error itself is well enough for that."""
        if self.refused:
            return "unreachable" if self.reason in UNREACHED else "refused"
        return "told" if self.reason == "status_500" else "failed"


def map_failure(error: BaseException) -> Failure:
    """What an exception of the HTTP client means."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failure(CONNECT_TIMEOUT, BackendTimeout("The server did not take the connection in time."), refused=True)
    if isinstance(error, TimeoutError):
        return Failure("timeout", BackendTimeout("The server took too long to answer."))
    if isinstance(error, aiohttp.ClientConnectorError) and descriptors.none_left():
        busy = Unavailable("Too many connections are open.", code="overloaded", retry_after=1)
        return Failure("too_many_open_files", busy, refused=True, blamed=False)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure(_no_connection(error), BackendFailed("The server can't be reached."), refused=True)
    broken_off = (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError, ConnectionError)
    if isinstance(error, broken_off):
        return Failure("disconnected", BackendFailed("The server broke the connection off."))
    return malformed(type(error).__name__)


def _no_connection(error: aiohttp.ClientConnectorError) -> str:
    """The reason of a failure where there is no connection, by the words that probes have for it too."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ADDRESS_REFUSED if isinstance(error.os_error, PermissionError) else NO_ADDRESS
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return BAD_CERTIFICATE
    return TLS_FAILED if isinstance(error, aiohttp.ClientSSLError) else "refused"


def malformed(what: str) -> Failure:
    """A failure of a server that doesn't speak the protocol."""
    return Failure(f"malformed: {what}", BackendFailed("The server's answer could not be understood."))


def error_in_answer(payload: Any, server: Server) -> Failure | BackendRefused:
    """What an error object means that came with a status of success."""
    payload = payload if isinstance(payload, dict) else {}
    error = payload.get("error")
    details = error if error and isinstance(error, dict) else payload
    body = msgspec.json.encode(payload)
    told = (_status(details.get(name)) for name in ("code", "status", "status_code"))
    # OpenAI's codes say more than its types: a wrong key of ours is an "invalid request" too
    status = next(filter(None, told), 0) or _STATUS_OF_CODE.get(read_error(body).code or "", 0)
    status = status or _status_of(str(details.get("type", "")))
    return meaning(status, body, server)


def _status(value: Any) -> int:
    """The error status that a code is, as a number or in digits; 0 when it is none."""
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and 400 <= value <= 599 else 0


_STATUS_OF_CODE = {
    PAST_CONTEXT: 400,
    "content_policy_violation": 400,
    "invalid_request": 400,
    "invalid_request_error": 400,
    "invalid_type": 400,
    "invalid_value": 400,
    "missing_required_parameter": 400,
    "string_above_max_length": 400,
    "unknown_parameter": 400,
    "unsupported_parameter": 400,
    "unsupported_value": 400,
    "invalid_api_key": 401,
    "permission_denied": 403,
    MODEL_GONE: 404,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded": 503,
}
_STATUS_OF_TYPE = {
    "ratelimit": 429,
    "quota": 429,
    "invalidrequest": 400,
    "badrequest": 400,
    "exceedcontextsize": 400,
    "notfound": 404,
    "authentication": 401,
    "unauthorized": 401,
    "permission": 403,
    "unavailable": 503,
    "overloaded": 503,
    "timeout": 504,
}
"""What stands in the types of OpenAI, Anthropic, vLLM and llama.cpp, without their underlines."""


def _status_of(kind: str) -> int:
    kind = kind.lower().replace("_", "")
    return next((status for part, status in _STATUS_OF_TYPE.items() if part in kind), 500)


NOT_THERE = frozenset((404, 405, 410))
"""Statuses of a server that has not got the model, or not this endpoint."""
_OF_THE_SERVER = NOT_THERE | {401, 402, 403, 407, 408, 421, 423, 424, 425, 426, 429}
"""4xx that tell of the server, or of what it makes of the gateway: any other blames the request. 424 is TGI's for a
generation that failed.
"""


def meaning(status: int, body: bytes, server: Server, retry_after: str | None = None) -> Failure | BackendRefused:
    """What a server's error status means: the request's own fault, or the server's."""
    words = read_error(body)
    is_number = retry_after and retry_after.isascii() and retry_after.isdecimal() and len(retry_after) <= MOST_DIGITS
    seconds = float(retry_after) if retry_after and is_number else None
    if (400 <= status < 500 and status not in _OF_THE_SERVER) or (
        status >= 500 and DIALECTS[server.kind].blames_request(status, words.message)
    ):
        public, message = status if status == 413 else 400, scrub(words.message)
        if message and status >= 500:  # of itself, as a rule, and not of the request
            message = f"The model's server says: {message}"
        message = message or "The server refused the request."
        return BackendRefused(message, status=public, code=words.code, param=words.param)
    if status in NOT_THERE or (status == LoopDetected.status and words.code == LOOP):
        return _not_there(words)
    if status == 429:
        error = LimitExceeded("The servers of this model are busy.", code="server_busy", retry_after=seconds or 1)
        return Failure("rate_limited", error, blamed=False, pause=min(seconds or PAUSE, LONGEST_PAUSE))
    if status == 503:
        return _not_ready(words, server, seconds)
    if status in (408, 504):
        return Failure(f"status_{status}", BackendTimeout("The server took too long to answer."))
    return Failure(f"status_{status}", BackendFailed("The server failed to answer."))


def _not_ready(words: Words, server: Server, seconds: float | None) -> Failure:
    """What a 503 means; another Citadel that has nobody for a model is as well as ever for all others."""
    error = Unavailable("The server is not ready.", code="server_unavailable", retry_after=seconds or 1)
    if server.kind == "citadel" and words.code in OF_ITS_FLEET:
        return Failure(NOBODY_THERE, error, blamed=False, pause=min(seconds or PAUSE, LONGEST_PAUSE))
    return Failure("status_503", error)


def _not_there(words: Words) -> Failure:
    """What it means that something is not there: the model, of which the server then speaks, or else the endpoint."""
    if words.code == LOOP:
        back = LoopDetected("A server of this model leads back to this Citadel, by which alone it has the model.")
        return Failure(LOOP, back, blamed=False, pause=GONE_FOR)
    if words.code == MODEL_GONE or "model" in words.message.lower():
        gone = NotFound("The model is not there.", code="model_not_found")
        return Failure(MODEL_GONE, gone, blamed=False, pause=GONE_FOR)
    message = "The model's servers do not serve this endpoint."
    return Failure(NO_ENDPOINT, BadRequest(message, code="unsupported_by_model"), blamed=False, pause=GONE_FOR)
