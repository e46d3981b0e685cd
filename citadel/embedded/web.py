"""The public address: bound once by the supervisor, so that workers come and go without a refused connection."""

import errno
import signal
import socket
import sys
from contextlib import suppress

import psutil

from citadel.embedded import ready
from citadel.embedded.home import Home, StartError
from citadel.embedded.supervisor import Child

BACKLOG = 2048
# When running answers have ended, a worker may take ten seconds to write its last records (apps/gateway/runtime.py).
AFTER_DRAIN_SECONDS = 15.0


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to HOST:PORT that does not listen yet. StartError when it can't be had, with who has it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        public = socket.socket(family, kind, protocol)
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        public.bind(address)
    except OSError as error:
        raise StartError(_trouble(host, port, error)) from None
    return public


def listen(public: socket.socket) -> None:
    """Accept connections from now on; they wait until a worker takes them. StartError when another was faster."""
    try:
        public.listen(BACKLOG)
    except OSError as error:
        host, port = public.getsockname()[:2]
        raise StartError(_trouble(host, port, error)) from None


def worker(home: Home, number: int, public: socket.socket, drain: float) -> Child:
    """Web worker NUMBER on the public socket. It says itself that it serves: behind that address any may answer.

    Asked to stop it gets DRAIN seconds for running answers, and some more to put its things away.
    """
    name = f"web-{number}"
    program = [sys.executable, "-m", "citadel.serve", "--fd", str(public.fileno()), "--name", name]
    command, serves = ready.by_sign(home, name, program)
    return Child(
        name=name,
        command=command,
        ready=serves,
        files=(public.fileno(),),
        start_timeout=60.0,
        stop_signal=signal.SIGINT,  # all end: no connection is kept for another request (citadel/draining.py)
        stop_timeout=drain + AFTER_DRAIN_SECONDS,
        tier=2,
    )


def _trouble(host: str, port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"Port {port} needs rights that this user lacks; choose one above 1023: "
            f"CITADEL_SERVER__PORT={port + 8000} bin/run"
        )
    if error.errno != errno.EADDRINUSE:
        return (
            f"Cannot listen on {host}:{port}: {error.strerror}. Set CITADEL_SERVER__HOST to an address of this machine."
        )
    return (
        f"Port {port} on {host} is taken by {_owner(port)}. End that program, or choose another port: "
        f"CITADEL_SERVER__PORT={port + 1} bin/run"
    )


def _owner(port: int) -> str:
    """The program that listens on PORT, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and connection.laddr[1:] == (port,):
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "another program"
