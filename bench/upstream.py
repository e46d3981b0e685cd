"""The upstream: an OpenAI-like server that costs as little as Python allows, so that what is measured is the proxy.

One process, one core. It reads only what it needs of HTTP (no chunked request bodies, no pipelining behind a stream).
Start it by itself with ``python -m bench.upstream --port 9000``.
"""

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

import uvloop

from bench import answers


class Upstream(asyncio.Protocol):
    """One connection: requests in, answers out, one after the other."""

    __slots__ = ("chunks", "interval", "loop", "pending", "stream", "transport")

    transport: asyncio.Transport

    def __init__(self, chunks: int, interval: float) -> None:
        """Take the chunks of a stream and the seconds between two of them, for requests that say neither."""
        self.chunks = chunks
        self.interval = interval
        self.loop = asyncio.get_running_loop()
        self.pending = b""
        self.stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection that asyncio has opened."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own type is not declared as one

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole and keep the rest."""
        if self.pending:
            data = self.pending + data
        while data:
            head_end = data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                break
            length = _content_length(data[:head_end])
            if length is None:
                self.transport.write(answers.NO_LENGTH)
                self.transport.close()
                return
            end = head_end + length
            if len(data) < end:
                break
            self.answer(data[: data.find(b" HTTP/")], data[head_end:end])
            data = data[end:]
        self.pending = data

    def answer(self, request: bytes, body: bytes) -> None:
        """Answer one request, given its method and path, and its body."""
        if request == b"POST /v1/chat/completions":
            if b'"stream' not in body:
                self.transport.write(answers.completion(answers.question_number(body)))
            else:
                self.answer_chat(body)
        elif request == b"POST /v1/embeddings":
            self.answer_embeddings(body)
        elif request == b"GET /v1/models":
            self.transport.write(answers.MODELS)
        elif request == b"GET /health":
            self.transport.write(answers.HEALTHY)
        else:
            self.transport.write(answers.NOT_FOUND)

    def answer_chat(self, body: bytes) -> None:
        """Answer a chat request that speaks of streams."""
        fields = _json_object(body)
        if fields is None:
            self.transport.write(answers.NOT_JSON)
        elif fields.get("stream"):
            self.stream = Stream(self, body, fields)
            self.stream.start()
        else:
            self.transport.write(answers.completion(answers.question_number(body)))

    def answer_embeddings(self, body: bytes) -> None:
        """Answer with as many vectors as there are inputs."""
        fields = _json_object(body)
        if fields is None:
            self.transport.write(answers.NOT_JSON)
            return
        given = fields.get("input")
        is_batch = isinstance(given, list) and given and not isinstance(given[0], int)
        count = len(given) if is_batch and isinstance(given, list) else 1
        self.transport.write(answers.embeddings(count, fields.get("encoding_format") == "base64"))

    def pause_writing(self) -> None:
        """Hold the stream: the reader is behind."""
        if self.stream:
            self.stream.paused = True

    def resume_writing(self) -> None:
        """Let the stream go on."""
        if self.stream:
            self.stream.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream of a reader that has gone."""
        if self.stream:
            self.stream.stop()


class Stream:
    """One streamed answer: an event each interval, or one each turn of the loop when the interval is 0."""

    __slots__ = ("due", "events", "interval", "loop", "number", "paused", "protocol", "timer", "transport")

    def __init__(self, protocol: Upstream, body: bytes, fields: dict[str, object]) -> None:
        """Take the request's body and fields; ``bench_chunks`` and ``bench_interval_ms`` are the benchmark's own."""
        options = fields.get("stream_options")
        chunks = fields.get("bench_chunks")
        milliseconds = fields.get("bench_interval_ms")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        count = chunks if isinstance(chunks, int) else protocol.chunks
        self.interval = milliseconds / 1000 if isinstance(milliseconds, int | float) else protocol.interval
        self.events = deque(answers.stream(count, include_usage))
        self.number = answers.question_number(body)
        self.protocol = protocol
        self.transport = protocol.transport
        self.loop = protocol.loop
        self.paused = False
        self.timer: asyncio.Handle | None = None
        self.due = self.loop.time()

    def start(self) -> None:
        """Send the head; the first event follows in the next turn."""
        self.transport.write(answers.STREAM_HEAD)
        self.timer = self.loop.call_soon(self.send_next)

    def send_next(self) -> None:
        """Send one event, and the end after the last one."""
        self.timer = None
        if self.paused:
            return
        if not self.events:
            self.transport.write(answers.STREAM_END)
            self.protocol.stream = None
            return
        before, after = self.events.popleft()
        self.transport.write(before + self.number + after)
        self.schedule()

    def schedule(self) -> None:
        """Plan the next event by the clock, so that a late one delays none of those after it."""
        if self.interval and self.events:
            self.due += self.interval
            self.timer = self.loop.call_at(self.due, self.send_next)
        else:
            self.timer = self.loop.call_soon(self.send_next)

    def resume(self) -> None:
        """Go on after the reader has caught up."""
        self.paused = False
        if self.timer is None:
            self.schedule()

    def stop(self) -> None:
        """Forget the rest: the reader has gone."""
        self.events.clear()
        if self.timer:
            self.timer.cancel()


def _content_length(head: bytes) -> int | None:
    """Read the length of the body from a request's head: 0 where there is none, None for a chunked body."""
    lower = head.lower()
    start = lower.find(b"\ncontent-length:")
    if start >= 0:
        return int(lower[start + 16 : lower.find(b"\r", start)])
    return None if b"\ntransfer-encoding:" in lower else 0


def _json_object(body: bytes) -> dict[str, object] | None:
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


async def serve(host: str, ports: Sequence[int], chunks: int, interval: float) -> None:
    """Serve on all ports until cancelled. ``interval`` is in seconds."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for port in ports:
            server = await loop.create_server(lambda: Upstream(chunks, interval), host, port, backlog=4096)
            await stack.enter_async_context(server)
        await asyncio.Event().wait()


def main() -> None:
    """Read the command line and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, nargs="+", required=True, help="one, or several as if they were servers")
    parser.add_argument("--chunks", type=int, default=100, help="content chunks of a stream (100)")
    parser.add_argument("--interval", type=float, default=0.0, metavar="MS", help="milliseconds between chunks (0)")
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.host, options.port, options.chunks, options.interval / 1000))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
