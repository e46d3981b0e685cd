"""The only one that talks to servers, and the only one that maps their failures."""

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec
import yarl
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict

from apps.gateway.inference.sse import json_or_none
from apps.orchestration.dialects import DIALECTS
from apps.orchestration.fleet import Server
from citadel.config import Config
from citadel.errors import (
    BackendFailed,
    BackendRefused,
    BackendTimeout,
    CitadelError,
    LimitExceeded,
    NotFound,
    Unavailable,
)

LARGEST_ANSWER = 64 * 1024 * 1024
LARGEST_ERROR = 64 * 1024
HOP = "x-citadel-via"
"""The Citadels that a request has passed."""
STALE_CONNECTIONS = 2
"""Kept connections that may turn out to be closed before a failure counts."""

_fresh: ContextVar[bool] = ContextVar("fresh", default=False)


class Failure(Exception):
    """One attempt on one server did not give an answer.

    `reason` is for the record, `error` for the client if no other server does better. `refused`: nothing was sent.
    `blamed`: it counts against the server.
    """

    def __init__(self, reason: str, error: CitadelError, *, refused: bool = False, blamed: bool = True):
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.refused = refused
        self.blamed = blamed


class Upstream:
    """One worker's connections to all servers."""

    def __init__(self, config: Config, hop: str):
        self._config = config
        self.hop = hop
        self._session: aiohttp.ClientSession | None = None
        self._send: Callable[..., Awaitable[aiohttp.ClientResponse]]
        """The session's own way to send a POST, from `start` on."""
        self._addresses: dict[tuple[str, str], yarl.URL] = {}
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=None,
            sock_connect=config.timeouts.server_connect,
            sock_read=config.routing.first_byte_timeout,
        )

    async def start(self) -> None:
        """Opens the pool; it has no limit of its own, and keeps so many idle connections as the settings say."""
        connector = _Connector(
            limit=0, keepalive_timeout=self._config.timeouts.keep_alive, ttl_dns_cache=10, happy_eyeballs_delay=0.25
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding"),
            trust_env=False,
            max_line_size=16384,
            max_field_size=32768,
        )
        self._send = self._session.post

    async def stop(self) -> None:
        """Closes every connection."""
        if self._session:
            await self._session.close()

    async def ask(
        self,
        server: Server,
        path: str,
        body: bytes,
        request_id: str,
        via: str,
        understood: Callable[[bytes], bytes] | None = None,
    ) -> bytes:
        """A whole answer's body, JSON that isn't an error, or what `understood` makes of it.

        Raises Failure, or BackendRefused for the client's fault.
        """
        try:
            response = await self._post(server, path, body, request_id, via)
            if response.content.is_eof():  # a short answer came in one packet with its head
                answer = response.content.read_nowait()
            else:
                answer = await _read_and_release(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None
        shape = check_answer(answer, response.headers.get("content-type", ""), server)
        if understood:
            return understood(answer)
        if not (shape.choices or shape.data):
            raise malformed("nothing in it")
        return answer

    async def open(self, server: Server, path: str, body: bytes, request_id: str, via: str) -> aiohttp.ClientResponse:
        """The response of a server that has begun a stream. The caller closes it."""
        try:
            response = await self._post(server, path, body, request_id, via)
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                try:
                    answer = await _read(response, LARGEST_ERROR)
                finally:
                    response.close()
                check_answer(answer, kind, server)
                raise malformed("a stream was asked for and none came")
            return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None

    async def _post(self, server: Server, path: str, body: bytes, request_id: str, via: str) -> aiohttp.ClientResponse:
        """The response to an accepted request; what isn't a plain 200 is raised."""
        address = self._addresses.get((server.url, path))
        if address is None:
            address = self._addresses[server.url, path] = yarl.URL(server.url + path)
        headers = CIMultiDict(
            {
                "content-type": "application/json",
                "x-request-id": request_id,
                HOP: f"{via},{self.hop}" if via else self.hop,
            }
        )
        if server.api_key:
            headers["authorization"] = f"Bearer {server.api_key}"
        if not DIALECTS[server.kind].keeps_connections:
            headers["connection"] = "close"
        _fresh.set(False)
        try:
            response = await self._send(address, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            response = await self._send_again(error, address, body, headers)
        encoding = response.headers.get("content-encoding", "identity")
        if response.status == 200 and encoding == "identity":
            return response
        try:
            answer = await _read(response, LARGEST_ERROR)
        finally:
            response.close()
        if response.status == 200:
            raise malformed(f"content-encoding {encoding} was not asked for")
        raise meaning(response.status, answer, server, response.headers.get("retry-after"))

    async def _send_again(
        self, error: aiohttp.ClientError, address: yarl.URL, body: bytes, headers: CIMultiDict[str]
    ) -> aiohttp.ClientResponse:
        """A kept connection that the server has closed in the meantime is no failure of it; any other `error` is."""
        for _ in range(STALE_CONNECTIONS):
            if _fresh.get() or isinstance(error, aiohttp.ClientConnectorError):
                break
            _fresh.set(False)
            try:
                return await self._send(address, data=body, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as another:
                error = another
        raise error


class BrokenFraming(aiohttp.ClientError):
    """A body whose chunked coding can't be read any further."""


class _Protocol(ResponseHandler):
    """Tells the reader of a body at once that its framing is broken: the library tells only who waits for a head."""

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and isinstance(exc, HttpProcessingError):
            body.set_exception(BrokenFraming(str(exc)))


class _Connector(aiohttp.TCPConnector):
    """A pool that tells whether the running request had a connection made for it."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._factory: Any = functools.partial(_Protocol, loop=asyncio.get_running_loop())

    async def _create_connection(self, *arguments: Any, **options: Any) -> Any:
        _fresh.set(True)
        return await super()._create_connection(*arguments, **options)


async def _read_and_release(response: aiohttp.ClientResponse) -> bytes:
    """A whole answer; its connection can be used again, unless this fails."""
    try:
        answer = await _read(response, LARGEST_ANSWER)
    except BaseException:
        response.close()
        raise
    response.release()
    return answer


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, up to `limit` bytes."""
    body = await response.content.readany()
    if response.content.at_eof():
        return body
    pieces, size = [body], len(body)
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise malformed("the answer is too large")
    return b"".join(pieces)


def map_failure(error: BaseException) -> Failure:
    """What an exception of the HTTP client means."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failure(
            "connect_timeout", BackendTimeout("The server did not take the connection in time."), refused=True
        )
    if isinstance(error, TimeoutError):
        return Failure("timeout", BackendTimeout("The server took too long to answer."))
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure("refused", BackendFailed("The server can't be reached."), refused=True)
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionError)):
        return Failure("disconnected", BackendFailed("The server broke the connection off."))
    return malformed(type(error).__name__)


def malformed(what: str) -> Failure:
    """A failure of a server that doesn't speak the protocol."""
    return Failure(f"malformed: {what}", BackendFailed("The server's answer could not be understood."))


class _Shape(msgspec.Struct):
    """As much of an answer as tells it from an error."""

    error: Any = None
    object: Any = None
    choices: list[msgspec.Raw] | None = None
    data: list[msgspec.Raw] | None = None


_shape = msgspec.json.Decoder(_Shape)


def check_answer(body: bytes, content_type: str, server: Server) -> _Shape:
    """Gives its shape, or raises what a 200 really means when it is no answer: an error in it, HTML, nothing."""
    if not body.strip():
        raise malformed("empty body")
    try:
        shape = _shape.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed("not a JSON object" if "html" not in content_type else "an HTML page") from None
    if shape.error or shape.object == "error":
        raise error_in_answer(json_or_none(body), server)
    return shape


def error_in_answer(payload: Any, server: Server) -> Failure | BackendRefused:
    """What an error object means that came with a status of success."""
    error = payload.get("error") if isinstance(payload, dict) else None
    details = error if isinstance(error, dict) else payload if isinstance(payload, dict) else {}
    code = details.get("code")
    if isinstance(code, int) and 400 <= code <= 599:
        status = code
    else:  # OpenAI's codes say more than its types: a wrong key of ours is an "invalid request" too
        status = _STATUS_OF_CODE.get(str(code)) or _status_of(str(details.get("type", "")))
    return meaning(status, msgspec.json.encode(payload), server)


_STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "permission_denied": 403,
    "model_not_found": 404,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "overloaded": 503,
}


def _status_of(kind: str) -> int:
    kind = kind.lower()
    if "rate_limit" in kind:
        return 429
    if "invalid_request" in kind or "badrequest" in kind:
        return 400
    return 500


def meaning(status: int, body: bytes, server: Server, retry_after: str | None = None) -> Failure | BackendRefused:
    """What a server's error status means: the request's own fault, or the server's."""
    message, code, param = read_error(body)
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    if status in (400, 413, 415, 422) or (status >= 500 and DIALECTS[server.kind].blames_request(status, message)):
        public = status if status == 413 else 400
        return BackendRefused(
            scrub(message) or "The server refused the request.", status=public, code=code, param=param
        )
    if status == 404:
        return Failure("model_not_found", NotFound("The model is not there.", code="model_not_found"), blamed=False)
    if status == 429:
        error = LimitExceeded("The servers of this model are busy.", code="server_busy", retry_after=seconds or 1)
        return Failure("rate_limited", error, blamed=False)
    if status == 503:
        return Failure(
            "status_503", Unavailable("The server is not ready.", code="server_unavailable", retry_after=seconds or 1)
        )
    if status in (408, 504):
        return Failure(f"status_{status}", BackendTimeout("The server took too long to answer."))
    return Failure(f"status_{status}", BackendFailed("The server failed to answer."))


def read_error(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, code and param of an error body, in OpenAI's shape or another's."""
    payload = json_or_none(body)
    if not isinstance(payload, dict):
        return "", None, None
    error = payload.get("error", payload)
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return "", None, None
    message = error.get("message") or error.get("detail") or ""
    code, param = error.get("code"), error.get("param")
    return (
        message if isinstance(message, str) else msgspec.json.encode(message).decode(),
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
    )


_INTERNALS = re.compile(
    r"https?://\S+|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b|\blocalhost(?::\d+)?\b|(?<![\w/])(?:/[\w.@+-]+){2,}|[A-Z]:\\\S+"
)


def scrub(message: str) -> str:
    """A server's words without its insides: no addresses, paths, stack traces; 500 characters at most."""
    text = message.split("Traceback (most recent call last)", maxsplit=1)[0].strip()
    return _INTERNALS.sub("…", text)[:500]
