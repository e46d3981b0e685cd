"""A server whose answers are large, in a process of its own: `python -m tests.faults.large_answers` prints its port.

Whole ones have `LARGE` bytes of content, streams `EVENTS` events; it sends both as fast as they are taken.
"""

import asyncio
import contextlib
import json
import socket

LARGE = 400_000
EVENTS = 1000
HEAD = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: "
TOLD = {"choices": [{"index": 0, "message": {"content": "x" * LARGE}, "finish_reason": "stop"}], "data": []}
WHOLE = json.dumps(TOLD).encode()
EVENT = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 8000}}]}).encode() + b"\n\n"
KERNEL = 65_536
"""Bytes that the system keeps of what is sent on a connection."""
BACKLOG = 4096


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request on a connection."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        if body and json.loads(body).get("stream"):
            writer.write(f"{HEAD}text/event-stream\r\n\r\n".encode())
            for _ in range(EVENTS):
                writer.write(EVENT)
                await writer.drain()
        else:
            writer.write(f"{HEAD}application/json\r\ncontent-length: {len(WHOLE)}\r\n\r\n".encode() + WHOLE)
            await writer.drain()
    writer.close()


async def main() -> None:
    """Serves until it is killed."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        server = await asyncio.start_server(answer, sock=listening, backlog=BACKLOG)
        print(listening.getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
