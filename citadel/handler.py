"""Runs a view for the data plane: Django's addresses and views without its middleware and thread hops.

Django's own handler builds the whole of `META`, goes through the middleware stack and sends its signals from threads,
on each request. Here the address is resolved once and kept, and what a request has is made when a view asks for it.
"""

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from typing import Any

from django.core.exceptions import TooManyFieldsSent
from django.http import HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.urls import Resolver404, get_resolver

from apps.gateway.access.authentication import count_refused, guarded, recognize
from apps.gateway.access.signatures.nonce import Nonce
from apps.gateway.inference.pipeline import Pipeline
from apps.gateway.openai.api import DOORS
from apps.gateway.runtime import Runtime
from apps.orchestration.servers_api import heartbeat, heartbeat_from
from citadel import hop, urls
from citadel.answer import JSON, Answer, Headers, StreamAnswer
from citadel.body import Scope
from citadel.caller import Caller
from citadel.errors import BadRequest, CitadelError, Forbidden, LoopDetected, MethodNotAllowed, NotFound

NOT_BELOW_V1 = " The API is at /v1: set your program's base URL to http(s)://host/v1, with nothing behind it."
GZIP_FROM = 1024
GZIP_IN_THREAD_FROM = 256 * 1024
"""Bytes from which compressing takes long enough to be worth a thread."""
GZIP_THREADS = 4
"""Of a worker, and for nothing else: zlib holds nothing up but its own thread, and a few very long answers leave one to
the others. More would only share the same cores.
"""
_gzip_threads = ThreadPoolExecutor(GZIP_THREADS, "gzip")

REFUSED = frozenset({400, 403, 404, 408, 409, 413})
"""What servers are told who say what is wrong; not who is nobody here, or says too much."""

WEIGHT = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")

Callback = Callable[..., Awaitable[HttpResponseBase]]


class Request(HttpRequest):
    """A request of the data plane: raw headers at hand, everything of Django's made when it is asked for."""

    auth: Caller
    nonce: Nonce | None = None

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], body: bytes, identity: str, runtime: Runtime):
        self.scope = scope
        self.raw_headers = headers
        self.identity = identity
        self.runtime = runtime
        self.method = "GET" if scope["method"] == "HEAD" else scope["method"]
        """The same answer serves both; of a HEAD's the connection sends the head alone (RFC 9110, 9.3.2)."""
        self.path = self.path_info = scope["path"]
        self.resolver_match = None
        self.content_type = headers.get(b"content-type", b"").partition(b";")[0].decode("latin-1")
        self._body = body
        self._read_started = True

    @property
    def pipeline(self) -> Pipeline:
        """The worker's pipeline."""
        return self.runtime.pipeline

    @cached_property
    def META(self) -> dict[str, Any]:  # type: ignore[override]  # Django's name
        """CGI's view of the headers."""
        client, server = self.scope.get("client"), self.scope.get("server")
        meta = {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.scope["query_string"].decode("latin-1"),
            "REMOTE_ADDR": client[0] if client else "",
            "SERVER_NAME": server[0] if server else "unknown",
            "SERVER_PORT": str(server[1]) if server else "0",
        }
        for name, value in self.raw_headers.items():
            key = name.decode("latin-1").upper().replace("-", "_")
            meta[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value.decode("latin-1")
        return meta

    @cached_property
    def GET(self) -> QueryDict:  # type: ignore[override]
        """The query; BadRequest where it has too many fields."""
        try:
            return QueryDict(self.scope["query_string"])
        except TooManyFieldsSent:
            raise BadRequest("There are too many fields in the query.") from None

    @cached_property
    def POST(self) -> QueryDict:  # type: ignore[override]
        """The data plane has no forms."""
        return QueryDict()

    @cached_property
    def COOKIES(self) -> dict[str, str]:  # type: ignore[override]
        """The data plane has no cookies."""
        return {}


class Handler:
    """Finds the view of an address and runs it."""

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._mark = hop.mark(runtime.config.secret)
        self._known: dict[str, Callback] = {}

    async def __call__(
        self, scope: Scope, headers: dict[bytes, bytes], body: bytes, identity: str
    ) -> Answer | StreamAnswer:
        """The answer to one request; raises CitadelError."""
        if hop.VIA in headers:
            headers[hop.VIA] = self._check_marks(hop.marks_of(scope["headers"]))
        request = Request(scope, headers, body, identity, self._runtime)
        response: HttpResponseBase
        if (door := DOORS.get(request.path)) and request.method == "POST":
            # Ninja knows these views too and would do the same; its way to them costs a tenth of a request.
            response = await self._enter(door, request)
        elif request.method == "POST" and (server_id := heartbeat_from(request.path)):
            response = await self._hear(request, server_id)
        else:
            response = await self._run(request)
        if isinstance(response, StreamAnswer):
            return response
        answer = response if isinstance(response, Answer) else _from_django(response)
        if len(answer.content) >= GZIP_FROM and _is_compressible(answer):
            answer.raw_headers = [*answer.raw_headers, (b"vary", b"accept-encoding")]
            if _accepts_gzip(headers.get(b"accept-encoding", b"")):
                await _compress(answer)
        return answer

    async def _enter(self, door: Callback, request: Request) -> HttpResponseBase:
        """What a model's door gives; of an error is told whose request it was, and what is refused at the door itself,
        which no limit of inference has seen, is counted as all else is.
        """
        request.auth, request.nonce = await recognize(request)
        try:
            return await door(request)
        except CitadelError as error:
            error.whose = request.auth.key_id
            if isinstance(error, (BadRequest, Forbidden, NotFound)) and not error.way:
                if request.nonce:
                    await self._runtime.signatures.use_up(request.nonce)
                await self._runtime.floods.check(request.auth.key_id)
            raise

    async def _hear(self, request: Request, server_id: str) -> HttpResponseBase:
        """What a heartbeat is answered, without ninja: a fleet sends thousands of these."""
        request.auth = await guarded(request)
        try:
            return await heartbeat(request, server_id)
        except CitadelError as error:
            if error.status in REFUSED:
                await count_refused(request)
            raise

    def _check_marks(self, via: bytes) -> bytes:
        """The marks that a request carries; LoopDetected if ours is among them."""
        if hop.has_passed(via, self._mark):
            raise LoopDetected("This request comes from this Citadel itself: one of its servers leads back to it.")
        return via

    async def _run(self, request: Request) -> HttpResponseBase:
        if callback := self._known.get(request.path):
            response = await callback(request)
        else:
            response = await self._resolve_and_run(request)
        if response.status_code in REFUSED:
            await count_refused(request)
        return response

    async def _resolve_and_run(self, request: Request) -> HttpResponseBase:
        try:
            match = get_resolver().resolve(request.path)
        except Resolver404:
            hint = NOT_BELOW_V1 if request.path.startswith(urls.MISPLACED) else ""
            raise NotFound(f"There is nothing at {request.path[:200]}.{hint}") from None
        callback: Callback = match.func
        if not match.kwargs and not match.args:
            self._known[request.path] = callback  # as many entries as there are fixed addresses
        return await callback(request, *match.args, **match.kwargs)


def _from_django(response: HttpResponseBase) -> Answer:
    """What ninja makes for ordinary views, as an answer."""
    if response.status_code == 405:
        allow = response.get("allow", "")
        raise MethodNotAllowed(f"This address does not know that method; it takes {allow or 'none'}.", allow=allow)
    if not isinstance(response, HttpResponse):
        raise TypeError(f"a view gave {type(response).__name__}; streams are StreamAnswers here")
    headers: Headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.items()
        if name.lower() != "content-length"
    ]
    return Answer(response.content, status=response.status_code, headers=headers or [JSON])


@lru_cache(maxsize=32)  # programs of one kind say the same
def _accepts_gzip(accept: bytes) -> bool:
    """Whether an Accept-Encoding allows gzip, and not rather a plain answer (RFC 9110, 12.5.3)."""
    weights = {}
    for part in accept.lower().split(b","):
        coding, *rest = (side.strip() for side in part.split(b";"))
        weights[coding.removeprefix(b"x-")] = _weight(*rest)
    gzip_s = weights.get(b"gzip", weights.get(b"*", 0.0))
    return gzip_s > 0 and gzip_s >= weights.get(b"identity", 0.0)


def _weight(given: bytes = b"q=1", *_more: bytes) -> float:
    """What a coding's `q=0.5` says; 0 for what is none."""
    match = WEIGHT.fullmatch(given)
    return float(match[1]) if match else 0.0


def _is_compressible(answer: Answer) -> bool:
    """Whether it is neither compressed already nor a stream's events."""
    return not any(
        name in (b"content-encoding", b"content-type") and value.startswith((b"gzip", b"text/event-stream"))
        for name, value in answer.raw_headers
    )


async def _compress(answer: Answer) -> None:
    """Level 1: most of the gain at a third of the time."""
    if answer.packed is not None:
        answer.content = answer.packed
    elif len(answer.content) < GZIP_IN_THREAD_FROM:
        answer.content = gzip.compress(answer.content, 1, mtime=0)
    else:
        compress = partial(gzip.compress, answer.content, 1, mtime=0)
        answer.content = await asyncio.get_running_loop().run_in_executor(_gzip_threads, compress)
    answer.raw_headers = [*answer.raw_headers, (b"content-encoding", b"gzip")]
