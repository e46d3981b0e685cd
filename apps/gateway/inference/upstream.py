"""The only one that talks to servers: asks for whole answers, opens streams."""

from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from apps.gateway.inference.connections import Connections, Response, Target
from apps.gateway.inference.doors import EMBEDDINGS
from apps.gateway.inference.failures import Failure, error_in_answer, malformed, map_failure, meaning
from apps.gateway.inference.idle import Bounds
from apps.gateway.inference.sse import UNREADABLE, is_utf8, json_or_none
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
    ) -> bytes:
        """A whole answer's body, JSON with what `path` is asked for in it, or what `understood` makes of it.

        Its first byte has so many seconds. Raises Failure, or BackendRefused for the client's fault.
        """
        try:
            response = await self._post(server, path, body, request_id, via, first_byte)
            if response.content.is_eof():  # a short answer came in one packet with its head
                answer = response.content.read_nowait()
                response.release()
            else:
                response.limit_silence(self._silence)
                answer = await _read_and_release(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise map_failure(error) from None
        shape = check_answer(answer, response.headers.get("content-type", ""), server)
        if understood:
            return understood(answer)
        if not (shape.data if path == EMBEDDINGS.path else shape.choices):
            raise malformed("nothing in it")
        return answer

    async def open(
        self, server: Server, path: str, body: bytes, request_id: str, via: str, first_byte: float
    ) -> Response:
        """The response of a server that has begun a stream. The caller releases or closes it."""
        try:
            response = await self._post(server, path, body, request_id, via, first_byte)
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                answer = await self._read_and_close(response)
                check_answer(answer, kind, server)
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
            raise malformed("the answer is too large")
    return b"".join(pieces)


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
    if not is_utf8(body):
        raise malformed("not UTF-8")
    try:
        shape = _shape.decode(body)
    except UNREADABLE:
        raise malformed("not a JSON object" if "html" not in content_type else "an HTML page") from None
    if shape.error or shape.object == "error":
        raise error_in_answer(json_or_none(body), server)
    return shape
