"""A client that sees what is truly on the wire: bytes, packets, and how the connection ends."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.fleet.control import Fleet

CHAT = "/v1/chat/completions"


@dataclass
class Seen:
    """What came: the packets as they were read, when, and how it ended."""

    packets: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    end: Literal["fin", "rst", "timeout", "whole"] = "timeout"

    @property
    def raw(self) -> bytes:
        """All bytes."""
        return b"".join(self.packets)

    @property
    def head(self) -> bytes:
        """Status line and headers."""
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.raw[9:12])

    @property
    def framed(self) -> bytes:
        """The body as it is on the wire."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def body(self) -> bytes:
        """The body without the chunked coding; what is cut off stays cut off."""
        if b"transfer-encoding: chunked" not in self.head:
            return self.framed
        rest, body = self.framed, b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return body

    def json(self) -> Any:
        """The body decoded."""
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of a well-formed stream."""
        lines = self.body.decode().split("\n")
        values = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [value if value == "[DONE]" else json.loads(value) for value in values]

    def content(self) -> list[str]:
        """The content of each chunk of a well-formed stream."""
        choices = [event["choices"][0] for event in self.events() if event != "[DONE]" and event.get("choices")]
        return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


def connect(server: Fleet) -> socket.socket:
    """A connection to the backend."""
    return socket.create_connection((server.host, server.port), timeout=5)


def chat(say: str = "hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": say}], **fields}


def request_bytes(path: str, body: Any = None, method: str = "", headers: str = "", close: bool = True) -> bytes:
    """A request as bytes; POST when there is a body."""
    data = b"" if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    headers += "connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nhost: fleet\r\ncontent-length: {len(data)}\r\n{headers}\r\n".encode() + data


def read(connection: socket.socket, limit: float = 3.0) -> Seen:
    """Read until the end of the connection or ``limit`` seconds of silence."""
    seen = Seen()
    connection.settimeout(limit)
    try:
        while data := connection.recv(1_000_000):
            seen.packets.append(data)
            seen.times.append(time.monotonic())
        seen.end = "fin"
    except ConnectionResetError:
        seen.end = "rst"
    except TimeoutError:
        seen.end = "timeout"
    return seen


def ask(
    server: Fleet, path: str = CHAT, body: Any = None, *, method: str = "", headers: str = "", limit: float = 3.0
) -> Seen:
    """One request on a connection of its own."""
    with connect(server) as connection:
        connection.sendall(request_bytes(path, body, method, headers))
        return read(connection, limit)


def stream(server: Fleet, say: str = "hello", *, limit: float = 3.0, **fields: Any) -> Seen:
    """One streamed chat."""
    return ask(server, CHAT, chat(say, stream=True, **fields), limit=limit)
