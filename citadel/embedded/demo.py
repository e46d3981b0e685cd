"""The demo fleet: a small chat model and a small embedding model, each a server of its own on the loopback."""

import hashlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from citadel.embedded import ports, ready
from citadel.embedded.home import Home
from citadel.embedded.supervisor import Child

START_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class DemoServer:
    """One server of the demo fleet: its id in the registry and its process's name, its kind, the module that it is."""

    server_id: str
    kind: str
    module: str
    model: str

    def child(self, port: int) -> Child:
        """The server on PORT, for the supervisor."""

        def command() -> Sequence[str]:
            return [sys.executable, "-m", self.module, "--port", str(port)]

        async def answers() -> str | None:
            return await ready.http(f"{address(port)}/health")

        return Child(
            name=self.server_id,
            command=command,
            ready=answers,
            start_timeout=START_PATIENCE_SECONDS,
            stop_timeout=5.0,
            tier=1,
        )


CHAT = DemoServer("demo-chat", "llamacpp", "citadel.embedded.chat_server", "smollm2:135m")
EMBEDDING = DemoServer("demo-embedding", "openai", "citadel.embedded.embedding_server", "all-minilm")
FLEET = (CHAT, EMBEDDING)


def port_of(home: Home, server: DemoServer) -> int:
    """The port of this server in this home."""
    return ports.port(home, server.server_id)


def address(port: int) -> str:
    """The URL of a server of ours on PORT."""
    return f"http://{ports.LOOPBACK}:{port}"


def mark(home: Home) -> str:
    """What tells this home's servers from those of others in a registry that homes share: machine and folder."""
    return f"{machine()}-{hashlib.sha256(os.fsencode(home.path)).hexdigest()[:8]}"


def machine() -> str:
    """What the marks of all homes on this machine begin with: its name is nobody's business who reads a server's id."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
