"""The only one that talks to servers: asks for whole answers, opens streams."""

from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from apps.gateway.inference.doors import CHAT, EMBEDDINGS
from apps.gateway.inference.http.connections import Connections, Response, Target
from apps.gateway.inference.http.failures import Failure, error_in_answer, malformed, map_failure, meaning
from apps.gateway.inference.http.idle import Bounds
from apps.gateway.inference.streams.sse import BROKEN_OFF, UNREADABLE, Object, Text, is_utf8, json_or_none, tells_error
from apps.orchestration.dialects import DIALECTS
from apps.orchestration.fleet import Server
from citadel.addresses import of_fleet
from citadel.errors import BackendFailed
from citadel.hop import HEADER
from citadel.sections import Config

LARGEST_ANSWER = 64 * 1024 * 1024
LARGEST_ERROR = 1024 * 1024
MOST_TARGETS = 10_000


class Upstream:
    """One worker's connections to all servers."""

    def __init__(self, config: Config, hop: str):
        self.hop = hop
        self._silence = config.routing.first_byte_timeout
        self._connections = Connections(
            of_fleet(config),
            connect=config.timeouts.server_connect,
            keep_alive=config.timeouts.keep_alive,
            kept=Bounds(config.pools.http, config.pools.per_server),
        )
        self._targets: dict[tuple[str, str], tuple[Server, Target]] = {}

    async def start(self) -> None:
        """Opens the pool."""
        await self._connections.start()

    async def stop(self) -> None:
        """Closes every connection."""
        await self._connections.stop()

    async def ask(
        self,
        server: Server,
        path: str,
        body: bytes,
        request_id: str,
        via: str,
        first_byte: float,
        understood: Callable[[bytes], bytes] | None = None,
        comes: Callable[[], None] | None = None,
    ) -> bytes:
        """A whole answer's body, JSON with what `path` is asked for in it, or what `understood` makes of it.

        Its first byte has so many seconds; `comes` is told of it where the rest is still to come. Raises Failure, or
        BackendRefused for the client's fault.
        """
        try:
            response = await self._post(server, path, body, request_id, via, first_byte)
            if response.content.is_eof():  # a short answer came in one packet with its head
                answer = response.content.read_nowait()
                response.release()
            else:
                if comes:
                    comes()
                response.limit_silence(self._silence)
                answer = await _read_and_release(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None
        check_answer(answer, response.headers.get("content-type", ""), server, path)
        return understood(answer) if understood else answer

    async def open(
        self, server: Server, path: str, body: bytes, request_id: str, via: str, first_byte: float
    ) -> Response:
        """The response of a server that has begun a stream. The caller releases or closes it."""
        try:
            response = await self._post(server, path, body, request_id, via, first_byte)
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                answer = await self._read_and_close(response)
                check_answer(answer, kind, server, path)
                raise malformed("a stream was asked for and none came")
            return response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None

    async def _post(
        self, server: Server, path: str, body: bytes, request_id: str, via: str, first_byte: float
    ) -> Response:
        """The response to an accepted request; what isn't a plain 200 is raised."""
        headers = f"x-request-id: {request_id}\r\n{HEADER}: {via}{',' if via else ''}{self.hop}\r\n"
        response = await self._connections.post(self._target(server, path), headers.encode("latin-1"), body, first_byte)
        encoding = response.headers.get("content-encoding", "identity")
        if response.status == 200 and encoding == "identity":
            return response
        answer = await self._read_and_close(response)
        if response.status == 200:
            raise malformed(f"content-encoding {encoding} was not asked for")
        raise meaning(response.status, answer, server, response.headers.get("retry-after"))

    async def _read_and_close(self, response: Response) -> bytes:
        """The body of what is no answer."""
        response.limit_silence(self._silence)
        try:
            return await _read(response, LARGEST_ERROR, cut=True)
        finally:
            response.close()

    def _target(self, server: Server, path: str) -> Target:
        known = self._targets.get((server.server_id, path))
        if known and known[0] is server:
            return known[1]
        headers = [("content-type", "application/json")]
        if server.api_key:
            headers.append(("authorization", f"Bearer {server.api_key}"))
        if not DIALECTS[server.kind].keeps_connections:
            headers.append(("connection", "close"))
        try:
            target = self._connections.target(server.url + path, headers)
        except ValueError:
            raise Failure("bad_address", BackendFailed("The server can't be reached."), refused=True) from None
        if len(self._targets) >= MOST_TARGETS:  # most of them of servers that are long gone
            self._targets.clear()
        self._targets[server.server_id, path] = (server, target)
        return target


async def _read_and_release(response: Response) -> bytes:
    """A whole answer; its connection can be used again, unless this fails."""
    try:
        answer = await _read(response, LARGEST_ANSWER)
    except BaseException:
        response.close()
        raise
    response.release()
    return answer


async def _read(response: Response, limit: int, *, cut: bool = False) -> bytes:
    """The body. A longer one than `limit` bytes is a failure, or `cut`."""
    body = await response.content.readany()
    if response.content.at_eof():
        return body
    pieces, size = [body], len(body)
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > limit and cut:
            break
        if size > limit:
            large = BackendFailed(f"The answer has more than {LARGEST_ANSWER >> 20} MB: ask for less at once.")
            raise Failure("too_large", large, blamed=False)  # the bound is ours
    return b"".join(pieces)


class _Message(Struct):
    role: Any = None
    content: Text = None
    tool_calls: list[Object] | None = None


_SILENCE = _Message()


class _Choice(Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Any = None


class _Shape(Struct):
    """As much of an answer as tells it from an error."""

    error: Any = None
    object: Any = None
    choices: list[_Choice] | None = None
    data: list[msgspec.Raw] | None = None


_shape = msgspec.json.Decoder(_Shape)


def check_answer(body: bytes, content_type: str, server: Server, path: str) -> None:
    """Raises what a 200 really means when what it holds is no answer of `path`: an error, HTML, nothing."""
    if not body.strip():
        raise malformed("empty body")
    if not is_utf8(body):
        raise malformed("not UTF-8")
    try:
        shape = _shape.decode(body)
    except UNREADABLE:
        raise _no_answer(body, server, "not a JSON answer" if "html" not in content_type else "an HTML page") from None
    if shape.error or shape.object == "error":
        raise error_in_answer(json_or_none(body), server)
    if not (shape.data if path == EMBEDDINGS.path else shape.choices):
        raise _no_answer(body, server, "nothing in it")
    if path != EMBEDDINGS.path:
        for choice in shape.choices or ():
            _check_choice(choice, server, chat=path == CHAT.path)


def _check_choice(choice: _Choice, server: Server, *, chat: bool) -> None:
    """Raises what is wrong with one choice of an answer."""
    if choice.error or choice.finish_reason in BROKEN_OFF:
        raise error_in_answer({"error": choice.error}, server)
    if (choice.message if chat else choice.text) in (None, _SILENCE) and choice.finish_reason != "content_filter":
        raise malformed("a choice that says nothing")


def _no_answer(body: bytes, server: Server, what: str) -> Exception:
    """What a body means that is no answer: the error that it tells, in whatever shape, or that the server is broken."""
    payload = json_or_none(body)
    return error_in_answer(payload, server) if tells_error(payload) else malformed(what)
