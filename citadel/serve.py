"""One web worker: `python -m citadel.serve --fd FD --name web-1`, or with `--host` and `--port` instead of a socket."""

import argparse
import contextlib
import ctypes
import math
import os
import resource
import socket
from functools import partial

from citadel import config, presence
from citadel.sections import Config, ServerSection

M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
LARGE_BLOCK = 128 * 1024
FILES = 65_536
"""Open at once, of which each connection is one: more is no use to one worker."""

LARGEST_WORD = 64 * 1024
"""Bytes of a message that a client sends over a WebSocket."""
NOSNIFF = ("x-content-type-options", "nosniff")
"""Nothing is to be taken for what its type doesn't say (Fetch standard)."""
YEAR = 365 * 24 * 3600
HSTS = {"host": f"max-age={YEAR}", "subdomains": f"max-age={YEAR}; includeSubDomains"}
"""For how long browsers come through TLS alone (RFC 6797, 6.1); what came without it they don't heed."""
PING_EVERY = 20.0
"""Seconds between two pings over a WebSocket, and for the answer to each."""


def main() -> None:
    """Serves until SIGTERM or SIGINT, then lets what runs end, and exits with 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, help="a listening socket to serve on")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--name", default="web-1", help="of which it leaves run/NAME.ready once it serves")
    arguments = parser.parse_args()
    _give_memory_back()
    _allow_files()
    settings = config.load()
    _prepare_metrics(settings)

    import uvicorn

    from citadel.draining import Server
    from citadel.protocol import LARGEST_HEAD, Protocol, no_credential

    os.environ["WEBSOCKETS_MAX_LINE_LENGTH"] = str(LARGEST_HEAD)  # which its library reads when it is imported

    from citadel.websocket import Socket

    Protocol.head_within, Protocol.taken_within = settings.timeouts.head, settings.timeouts.stream_idle
    Protocol.most = settings.security.connections
    Protocol.is_none = no_credential(settings.certificates.header)
    server = Server(
        uvicorn.Config(
            "citadel.asgi:application",
            host=arguments.host or settings.server.host,
            port=arguments.port or settings.server.port,
            http=Protocol,
            loop="uvloop",
            ws=Socket,
            ws_max_size=LARGEST_WORD,
            ws_ping_interval=PING_EVERY,
            ws_ping_timeout=PING_EVERY,
            ws_per_message_deflate=False,
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            headers=headers(settings.server),
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=math.ceil(settings.timeouts.keep_alive),
            timeout_graceful_shutdown=math.ceil(settings.timeouts.drain),
        ),
        partial(presence.tell_ready, settings.home, arguments.name),
    )
    server.run(sockets=[socket.socket(fileno=arguments.fd)] if arguments.fd is not None else None)


def headers(server: ServerSection) -> list[tuple[str, str]]:
    """Of each answer, whoever makes it."""
    if (server.public_url or "").startswith("https:") and server.hsts in HSTS:
        return [NOSNIFF, ("strict-transport-security", HSTS[server.hsts])]
    return [NOSNIFF]


def _give_memory_back() -> None:
    """Large blocks go back to the system when they are freed. Left to itself, glibc raises that bound with the first
    of them, and then a burst of large bodies leaves its mark on the worker's size for good.
    """
    with contextlib.suppress(AttributeError, OSError):  # a C library without it has no such habit
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _allow_files() -> None:
    """Takes as many open files as the machine allows: a shell's own bound is often 1,024, on macOS 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _prepare_metrics(settings: Config) -> None:
    """Tells the metrics library, before it is imported, where the workers' counters meet."""
    folder = settings.home / "run" / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(folder))


if __name__ == "__main__":
    main()
