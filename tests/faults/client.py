"""Clients that a case asks with: an ordinary one, and bare sockets for what no ordinary one would do."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tests.faults.invariants import Case

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
POSTS = (CHAT, COMPLETIONS, EMBEDDINGS)


def body_of(path: str, model: str, text: str = "Hello", **more: Any) -> dict[str, Any]:
    """The plainest request for that address."""
    content: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        COMPLETIONS: {"prompt": text},
        EMBEDDINGS: {"input": text},
    }[path]
    return {"model": model, **content, **more}


@dataclass
class Reply:
    """An answer read to its end. Times in seconds since the request was sent."""

    identity: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    begun: float
    ended: float
    broken: bool = False
    """Whether the connection broke before the answer was whole by its framing."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json()["error"]["code"])

    @property
    def events(self) -> list[str]:
        """The data of a stream's events."""
        blocks = self.body.decode().split("\n\n")
        return [
            block.removeprefix("data: ").replace("\ndata: ", "\n") for block in blocks if block.startswith("data: ")
        ]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """A stream's events that are chunks: neither an error nor `[DONE]`."""
        decoded = [json.loads(event) for event in self.events if event != "[DONE]"]
        return [chunk for chunk in decoded if "error" not in chunk]

    @property
    def stream_cut(self) -> bool:
        """Whether it is a stream that ends with an error."""
        return self.status == 200 and b'data: {"error"' in self.body

    @property
    def stream_error(self) -> dict[str, Any] | None:
        """The error event of a stream, if it has one."""
        for event in self.events:
            if event != "[DONE]" and (error := json.loads(event).get("error")):
                return dict(error)
        return None

    @property
    def text(self) -> str:
        """What the model says in a stream, or in a whole answer."""
        chunks = self.chunks if self.body.startswith((b"data:", b":")) else [self.json()]
        parts = (choice for chunk in chunks for choice in chunk.get("choices") or ())
        return "".join(
            (part.get("delta") or part.get("message") or part).get("content") or part.get("text") or ""
            for part in parts
        )

    @property
    def finish_reasons(self) -> list[str]:
        """All that stand in a stream."""
        return [
            choice["finish_reason"]
            for chunk in self.chunks
            for choice in chunk["choices"]
            if choice.get("finish_reason") is not None
        ]


@dataclass
class Client:
    """Asks as one key, with request ids of the case."""

    case: Case
    session: aiohttp.ClientSession
    key: str
    _numbers: Any = field(default_factory=itertools.count)

    def identity(self, *, recorded: bool = True) -> str:
        """A new request id."""
        identity = f"{self.case.prefix}-{self.key.split('_')[1]}-{next(self._numbers)}"
        (self.case.recorded if recorded else self.case.refused).add(identity)
        return identity

    async def ask(
        self,
        path: str,
        body: object,
        *,
        recorded: bool = True,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The answer to a POST. `recorded`: whether it is expected to come as far as the pipeline."""
        identity = self.identity(recorded=recorded)
        own = {"x-request-id": identity, "authorization": f"Bearer {key or self.key}", **(headers or {})}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = time.monotonic()
        async with self.session.post(path, data=data, headers={"content-type": "application/json", **own}) as answer:
            begun = time.monotonic() - sent
            pieces: list[bytes] = []
            broken = False
            try:
                async for piece in answer.content.iter_any():
                    pieces.append(piece)
            except aiohttp.ClientError:
                broken = True
        reply = Reply(identity, answer.status, answer.headers, b"".join(pieces), begun, time.monotonic() - sent, broken)
        self._note(reply)
        if reply.stream_cut:
            await asyncio.sleep(0.02)  # the connection is about to be closed: not to be used again
        return reply

    @contextlib.asynccontextmanager
    async def begin(self, path: str, body: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that the caller reads by himself, or leaves."""
        headers = {"x-request-id": self.identity(), "authorization": f"Bearer {self.key}"}
        async with self.session.post(path, json=body, headers=headers) as answer:
            yield answer

    def _note(self, reply: Reply) -> None:
        if reply.status >= 400 or reply.stream_cut:
            self.case.failed.add(reply.identity)
            self.case.errors.append(reply.body)


@contextlib.asynccontextmanager
async def asking(case: Case, key: str | None = None) -> AsyncIterator[Client]:
    """A client with a key of its own, or with `key`."""
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(case.citadel.url, connector=connector, timeout=timeout) as session:
        yield Client(case, session, key or case.new_key())
    await asyncio.sleep(0.01)  # closed connections are let go in the loop's next turns


@dataclass
class Wire:
    """A bare connection to Citadel."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Sends, as fast as it is taken; gives up silently when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def head(self, within: float = 10.0) -> tuple[int, dict[str, str]]:
        """The next status and headers."""
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), within)).decode("latin-1")
        first, *lines = text.split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def answer(self, within: float = 10.0) -> tuple[int, dict[str, str], bytes]:
        """The next answer, of known length, whole."""
        status, headers = await self.head(within)
        return status, headers, await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), within)

    async def rest(self, within: float = 10.0) -> bytes:
        """All that comes until the other side closes."""
        return await asyncio.wait_for(self.reader.read(-1), within)

    def leave(self) -> float:
        """Closes, and gives the time."""
        self.writer.transport.abort()
        return time.monotonic()


@contextlib.asynccontextmanager
async def wired(url: str, address: str | None = None) -> AsyncIterator[Wire]:
    """A bare connection to the server at `url`, from an address of this machine."""
    parts = urlsplit(url)
    own = (address, 0) if address else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 24, local_addr=own)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request_head(path: str, headers: Mapping[str, str]) -> bytes:
    """Request line and headers of a POST."""
    lines = [f"POST {path} HTTP/1.1", "host: citadel", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def unchunked(body: bytes) -> bytes:
    """What a chunked body carries, also if its end is missing."""
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        found.append(body[:length])
        body = body[length + 2 :]
    return b"".join(found)
